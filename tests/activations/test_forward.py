import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from sae_sweep.activations import forward, load_language_model
from sae_sweep.activations import loading as loading_module
from sae_sweep.config import ModelConfig

CPU = torch.device("cpu")
TOKENS = torch.tensor([[0, 5, 9, 0, 33, 120, 7]])


@pytest.fixture
def load(model_folder):
    def loaded(dtype="float32", **keys):
        return load_language_model(ModelConfig(path=str(model_folder), dtype=dtype), CPU, **keys)

    return loaded


@pytest.fixture
def change_copy(monkeypatch):
    """Change the copy of the transformers model before it is compared with the bridge."""

    def change(apply):
        original = loading_module.copy_sharing_weights

        def changed(network):
            copied = original(network)
            apply(copied)
            return copied

        monkeypatch.setattr(loading_module, "copy_sharing_weights", changed)

    return change


@pytest.mark.parametrize("dtype", forward.TOLERANCE)
def test_fused_attention_is_found_equal_in_every_dtype(load, dtype):
    lm = load(str(dtype).removeprefix("torch."))
    assert lm.attention == "sdpa"


def test_the_transformers_model_uses_fused_operations_on_the_same_weights(load, model_folder):
    lm = load()
    network = lm._forward.network
    assert network.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, NewGELUActivation) for module in network.modules())
    copied = forward.copy_sharing_weights(network)
    assert copied is not network
    for one, other in zip(network.parameters(), copied.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_a_model_that_is_not_equal_stays_with_the_bridge(load, change_copy, caplog):
    expected = load(fast=False).residuals(TOKENS, [2])[2]

    def spoil(network):
        network.transformer.h[0].mlp.act = nn.ReLU()

    change_copy(spoil)
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        lm = load()
    assert lm.attention == "eager"
    (record,) = [record for record in caplog.records if record.name == forward.__name__]
    assert record.message.startswith("eager attention: SDPA's residuals differ by ")
    assert record.message.endswith(", more than 1e-04")
    assert torch.equal(lm.residuals(TOKENS, [2])[2], expected)


@pytest.mark.parametrize(
    ("dtype", "difference", "attention"),
    [
        ("float32", 3e-5, "sdpa"),
        ("float32", 1e-3, "eager"),
        ("float32", 1e-2, "eager"),
        ("float16", 1e-2, "sdpa"),
        ("float16", 0.2, "eager"),
        ("float16", 2.0, "eager"),
        ("bfloat16", 5e-2, "sdpa"),
        ("bfloat16", 1.0, "eager"),
        ("bfloat16", 10.0, "eager"),
    ],
)
def test_residuals_may_differ_by_rounding_alone(load, change_copy, dtype, difference, attention):
    """Differences below the tolerance, and at 10 and 100 times it, as numbers to test the table too."""

    def scale(network):
        network.transformer.h[0].register_forward_hook(lambda _, args, residual: residual * (1 + difference))

    change_copy(scale)
    assert load(dtype).attention == attention


@pytest.mark.parametrize(("token", "attention"), [(0, "sdpa"), (5, "eager")])
def test_nan_of_eager_attention_counts_only_where_a_residual_is_read(load, monkeypatch, token, attention):
    """Token 0 is special, so that its position is masked."""
    original = forward.BridgeForward.residuals

    def spoiled(self, tokens, layers):
        residuals = original(self, tokens, layers)
        return {
            layer: each.masked_fill((tokens == token)[..., None], float("nan"))
            for layer, each in residuals.items()
        }

    monkeypatch.setattr(forward, "_probe", lambda *_: TOKENS)
    monkeypatch.setattr(forward.BridgeForward, "residuals", spoiled)
    assert load().attention == attention


def test_nan_is_not_equal(load, change_copy):
    def spoil(network):
        network.transformer.h[0].ln_1 = nn.LayerNorm(16)
        nn.init.constant_(network.transformer.h[0].ln_1.weight, float("nan"))

    change_copy(spoil)
    assert load().attention == "eager"


def test_a_model_that_refuses_stays_with_the_bridge(load, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("no SDPA here\nand more")

    monkeypatch.setattr(forward.SdpaForward, "__init__", refuse)
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        lm = load()
    assert lm.attention == "eager"
    assert "eager attention: the transformers model cannot be used (no SDPA here)" in caplog.messages


def test_a_model_without_a_copy_stays_with_the_bridge(load, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no copy")

    monkeypatch.setattr(forward.copy, "deepcopy", lambda *_: refuse())
    why = forward.copy_sharing_weights(nn.Linear(1, 1))
    assert why == "the transformers model cannot be used (no copy)"


class CallsByKeyword(nn.Module):
    """A model that calls its two blocks with keyword arguments only."""

    class Block(nn.Module):
        def forward(self, hidden_states, factor):
            return factor * hidden_states

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(), self.Block()])
        self.config = SimpleNamespace()
        self.set_attn_implementation = lambda name: None

    def forward(self, tokens, use_cache):
        residual = tokens.float()
        for block in self.blocks:
            residual = block(hidden_states=residual, factor=2)
        return SimpleNamespace(logits=residual)


def test_blocks_that_are_called_by_keyword_are_hooked_too():
    sdpa = forward.SdpaForward(CallsByKeyword(), "blocks")
    residuals = sdpa.residuals(TOKENS, [0, 1])
    assert torch.equal(residuals[0], TOKENS.float())
    assert torch.equal(residuals[1], 2.0 * TOKENS)
    patched = sdpa.logits(TOKENS, forward.Patch(1, lambda residual: residual + 1))
    assert torch.equal(patched, 2.0 * (2 * TOKENS + 1))


def test_blocks_that_need_the_earlier_ones_run_in_whole_passes(load, change_copy, caplog):
    def tie(network):
        first, last = network.transformer.h[0], network.transformer.h[2]
        hand, run = first.forward, last.forward

        def give(*args, **kwargs):
            last.handed = True
            return hand(*args, **kwargs)

        def need(*args, **kwargs):
            if last.handed is None:
                raise AttributeError("nothing was handed on")
            return run(*args, **kwargs)

        first.forward, last.forward = give, need
        network.register_forward_pre_hook(lambda *_: vars(last).update(handed=None))

    expected = load().losses(TOKENS, 1, torch.zeros_like)
    change_copy(tie)
    lm = load()
    assert lm.attention == "sdpa"
    residual = lm.residuals(TOKENS, [1])[1]
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        assert torch.equal(lm.losses(TOKENS, 1, torch.zeros_like, residual), expected)
    assert lm._forward._begins == {1: False}
    why = "evaluation in whole passes: none can begin at layer 1 (nothing was handed on)"
    assert caplog.messages.count(why) == 1
    assert [block.forward.__name__ for block in lm._forward.blocks] == ["give", "forward", "need"]


def test_what_a_block_remembers_of_an_earlier_pass_does_not_pass_for_equal(load, change_copy):
    def tie(network):
        first, last = network.transformer.h[0], network.transformer.h[2]
        hand, run = first.forward, last.forward
        first.register_forward_pre_hook(lambda _, args: vars(last).update(now=args[0]))

        def give(residual, *args, **kwargs):
            last.handed = residual
            return hand(residual, *args, **kwargs)

        def need(residual, *args, **kwargs):
            return run(residual + (last.handed - last.now), *args, **kwargs)

        first.forward, last.forward = give, need

    expected = load().losses(TOKENS, 1, torch.zeros_like)
    change_copy(tie)
    lm = load()
    assert lm.attention == "sdpa"
    residual = lm.residuals(TOKENS, [1])[1]
    assert torch.equal(lm.losses(TOKENS, 1, torch.zeros_like, residual), expected)
    assert lm._forward._begins == {1: False}


def test_no_hook_stays_behind_an_error(load):
    lm = load()
    residual = lm.residuals(TOKENS, [1])[1]

    def fail(residual):
        raise RuntimeError("here")

    for known in (None, residual):
        with pytest.raises(RuntimeError, match="here"):
            lm.losses(TOKENS, 1, fail, known)
    assert not any(block._forward_pre_hooks or "forward" in vars(block) for block in lm._forward.blocks)
