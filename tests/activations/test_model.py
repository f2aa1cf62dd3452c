from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from sae_sweep.activations import load_language_model
from sae_sweep.activations import model as model_module
from sae_sweep.config import ConfigError, ModelConfig

TOKENS = torch.tensor(
    [[0, 5, 9, 0, 33, 120, 7], [0, 200, 0, 0, 41, 42, 43]]
)  # EOT in the middle, and twice in a row


@pytest.fixture(scope="module")
def hf(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def slow(model_folder):
    """The same model through TransformerBridge."""
    model = ModelConfig(path=str(model_folder), dtype="float32")
    return load_language_model(model, torch.device("cpu"), fast=False)


@pytest.fixture(params=["sdpa", "eager"])
def either(request, lm, slow):
    return lm if request.param == "sdpa" else slow


def test_the_two_ways_through_a_model(lm, slow):
    assert (lm.attention, slow.attention) == ("sdpa", "eager")


def test_residuals_are_those_of_the_original_model(either, hf):
    with torch.no_grad():
        hidden = hf(TOKENS, output_hidden_states=True).hidden_states
    residuals = either.residuals(TOKENS, [2, 0, 1])
    assert list(residuals) == [2, 0, 1]
    for layer, residual in residuals.items():
        torch.testing.assert_close(residual, hidden[layer], rtol=1e-5, atol=1e-6)
        assert residual.mean(-1).abs().max() > 1e-3  # not centred
        assert not residual.requires_grad


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_layer_alone_is_the_same_to_the_bit(either, layer):
    assert torch.equal(either.residuals(TOKENS, [layer])[layer], either.residuals(TOKENS, [0, 1, 2])[layer])


@contextmanager
def blocks_that_run(lm):
    ran: list[int] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(lm._forward.blocks)
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def test_the_pass_goes_no_further_than_the_last_layer(either):
    with blocks_that_run(either) as ran:
        either.residuals(TOKENS, [0, 1])
    assert ran == [0]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("at_once", [1, 2**20])
def test_the_pass_begins_at_a_residual_that_is_known(either, layer, at_once, monkeypatch):
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)
    residual = either.residuals(TOKENS, [layer])[layer]

    def double(x):
        return 2 * x

    whole = either.losses(TOKENS, layer, double)
    assert torch.equal(either.losses(TOKENS, layer, double, residual), whole)  # tried on a few tokens first
    with blocks_that_run(either) as ran:
        resumed = either.losses(TOKENS, layer, double, residual)
    begin = layer if either.attention == "sdpa" else 0
    assert ran == [*range(begin, 3)] * (2 if at_once == 1 else 1)
    assert torch.equal(resumed, whole)
    assert torch.equal(either.losses(TOKENS, layer, double), whole)


def test_losses_are_the_cross_entropy_of_the_original_model(either, hf, monkeypatch):
    with torch.no_grad():
        logits = hf(TOKENS).logits
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="none"
    )
    losses = either.losses(TOKENS)
    assert losses.shape == (2, 6)
    torch.testing.assert_close(losses.flatten(), expected)
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", 1)  # one sequence at a time
    torch.testing.assert_close(either.losses(TOKENS), losses)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_replaced_residual_changes_what_follows(either, layer):
    clean = either.losses(TOKENS)
    assert torch.equal(either.losses(TOKENS, layer, lambda residual: residual.clone()), clean)
    seen = []

    def zero(residual):
        seen.append(residual.clone())
        return torch.zeros_like(residual)

    ablated = either.losses(TOKENS, layer, zero)
    assert torch.equal(seen[0], either.residuals(TOKENS, [layer])[layer])
    assert (ablated - clean).abs().max() > 1e-4
    assert torch.equal(either.losses(TOKENS), clean)  # no hook is left


def test_a_replacement_without_a_layer_is_a_mistake(lm):
    with pytest.raises(ValueError, match="replace needs the layer"):
        lm.losses(TOKENS, None, torch.zeros_like)


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_the_model_lacks_is_named_with_the_valid_ones(lm, layer):
    for use in (lambda: lm.residuals(TOKENS, [0, layer]), lambda: lm.losses(TOKENS, layer, torch.zeros_like)):
        with pytest.raises(ConfigError, match=rf"layer={layer}: tiny has layers 0 to 2"):
            use()


def test_sequences_beyond_the_context_are_refused(lm):
    with pytest.raises(ConfigError, match=r"packing\.seq_len=65: tiny reads at most 64 tokens"):
        lm.check([0], 65)
