"""The unembedding with the final norm folded in, against the logits of models of many families."""

import pytest
import torch
from torch import nn

from sae_sweep.activations import load_language_model
from sae_sweep.activations.unembedding import fold
from sae_sweep.config import ModelConfig, SaeSweepError
from tests.activations.families import save_family

CPU = torch.device("cpu")
TOKENS = torch.tensor([[0, 5, 9, 33, 120, 7, 8]])
FAMILIES = (
    "gpt2",
    "opt",
    "gpt_neo",
    "pythia",
    "llama",
    "gemma",
    "olmo",
    "bloom",
    "mpt",
    "cohere",
    "granite",
    "mamba",
)


def load(folder, name, *, dtype="float32", **keys):
    folder = save_family(folder / "m", name, **keys)
    return load_language_model(ModelConfig(path=str(folder), dtype=dtype), CPU)


def logits_after(lm, step):
    """The logits, if `step` is added before the final norm, and what stood there."""
    found, network = [], lm._forward.network

    def add(_, args):
        found.append(args[0])
        return (args[0] + step,)

    handle = network.get_submodule(lm._components["ln_final"]).register_forward_pre_hook(add)
    with torch.no_grad():
        logits = network.double()(TOKENS, use_cache=False).logits
    handle.remove()
    return logits, found[0].double()


def centred(x):
    return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_effects_are_the_finite_differences_of_the_models_logits(tmp_path, name):
    """Along a direction that leaves the norm's scale as it is, an effect over the scale is the change."""
    lm = load(tmp_path, name)
    unembedding = lm.unembedding(TOKENS)
    _, final = logits_after(lm, 0)
    normed = final if name in ("llama", "gemma", "granite", "mamba") else centred(final)
    scale = normed.square().mean(-1, keepdim=True).sqrt()
    step = 1e-2 * torch.randn(final.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step -= normed * (step * normed).sum(-1, keepdim=True) / normed.square().sum(-1, keepdim=True)
    change = (logits_after(lm, step)[0] - logits_after(lm, -step)[0]) / 2  # some norms compute in float32
    config = lm._forward.network.config
    factor = {"cohere": lambda: config.logit_scale, "granite": lambda: 1 / config.logits_scaling}
    expected = unembedding.effects(step.flatten(0, 1).float()).view(change.shape) / scale
    expected *= factor.get(name, lambda: 1.0)()
    torch.testing.assert_close(centred(change.double()), expected.double(), rtol=2e-3, atol=1e-5)


def test_a_soft_cap_keeps_the_order_of_tokens(tmp_path):
    lm = load(tmp_path, "gemma2")
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    network = lm._forward.network
    expected = network.model.norm(x[None])[0] @ network.lm_head.weight.T
    ours = lm.unembedding(TOKENS).effects(x / x.square().mean().sqrt())
    torch.testing.assert_close(ours, centred(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_of_half_precision_are_folded_in_float32(tmp_path, name, dtype):
    lm = load(tmp_path, name, dtype=dtype)
    effects = lm.unembedding(TOKENS).effects(torch.eye(16))
    network = lm._forward.network
    norm = network.get_submodule(lm._components["ln_final"])
    folded = network.lm_head.weight.float() * norm.weight.float()
    expected = centred(folded) if name == "gpt2" else folded
    torch.testing.assert_close(effects, centred(expected.T), rtol=1e-4, atol=1e-5)
    assert norm.weight.dtype == getattr(torch, dtype)


def test_tokens_that_no_text_has_are_left_out(tmp_path):
    lm = load(tmp_path, "gpt2", vocabulary=320)
    assert lm.sizes.vocabulary == 320
    assert lm.tokenizer.size == 300
    unembedding = lm.unembedding(TOKENS)
    assert unembedding.vocabulary == 300
    assert unembedding.effects(torch.ones(2, 16)).shape == (2, 300)


@pytest.mark.parametrize("name", ["openai-gpt", "opt_post_norm"])
def test_a_model_without_a_final_norm_is_refused(tmp_path, name):
    with pytest.raises(SaeSweepError, match="m has no final norm before its unembedding"):
        load(tmp_path, name).unembedding(TOKENS)


def test_a_model_that_scales_or_bends_between_norm_and_unembedding(tmp_path):
    """A factor changes no order of tokens; anything else is refused."""
    lm = load(tmp_path, "gpt2")
    head = lm._forward.network.lm_head
    with torch.no_grad():
        plain = lm.unembedding(TOKENS).effects(torch.eye(16))
        handle = head.register_forward_pre_hook(lambda _, args: (args[0] / 3,))
        assert torch.equal(lm.unembedding(TOKENS).effects(torch.eye(16)), plain)
        handle.remove()
        head.register_forward_pre_hook(lambda _, args: (args[0].relu(),))
    with pytest.raises(SaeSweepError, match="m: its logits are not the unembedding of its final norm"):
        lm.unembedding(TOKENS)


class Squashed(nn.Module):
    def forward(self, x):
        return torch.tanh(nn.functional.layer_norm(x, x.shape[-1:]))


@pytest.mark.parametrize(
    ("norm", "unembed", "why"),
    [
        (Squashed(), nn.Linear(8, 20), "its final norm is neither a LayerNorm nor an RMSNorm"),
        (nn.Identity(), nn.Linear(8, 20), "its final norm is neither a LayerNorm nor an RMSNorm"),
        (nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 20), nn.Tanh()), "its unembedding is no matrix"),
        (nn.LayerNorm(8), nn.Linear(8, 21), "its unembedding is no matrix"),
    ],
)
def test_what_is_not_folded_is_refused(norm, unembed, why):
    with torch.no_grad(), pytest.raises(SaeSweepError, match=why):
        fold(norm, unembed, torch.randn(5, 8), torch.randn(5, 20), None)


@pytest.mark.parametrize("d_model", [7, 8])
def test_a_norm_with_weights_and_biases_of_any_sign(d_model):
    norm, unembed = nn.LayerNorm(d_model), nn.Linear(d_model, 20)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(5, d_model)
    with torch.no_grad():
        found = fold(norm, unembed, x, unembed(norm(x)), None).effects(x)
        scale = x.var(-1, keepdim=True, unbiased=False).add(1e-5).sqrt()
        expected = centred(unembed(norm(x)) - unembed(norm.bias))
    torch.testing.assert_close(found / scale, expected, rtol=1e-3, atol=1e-5)
