import logging

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
def twin_that(monkeypatch):
    """Let something happen to the plain model before it is looked at."""

    def change(what):
        original = loading_module.copy_sharing_weights

        def changed(network):
            twin = original(network)
            what(twin)
            return twin

        monkeypatch.setattr(loading_module, "copy_sharing_weights", changed)

    return change


@pytest.mark.parametrize("dtype", forward.TOLERANCE)
def test_fused_attention_is_found_equal_in_every_dtype(load, dtype):
    lm = load(str(dtype).removeprefix("torch."))
    assert lm.attention == "sdpa"


def test_the_plain_model_uses_fused_operations_on_the_same_weights(load, model_folder):
    lm = load()
    network = lm._forward._network
    assert network.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, NewGELUActivation) for module in network.modules())
    twin = forward.copy_sharing_weights(network)
    assert twin is not network
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_a_model_that_is_not_equal_stays_with_the_bridge(load, twin_that, caplog):
    expected = load(fast=False).residuals(TOKENS, [2])[2]

    def spoil(twin):
        twin.transformer.h[0].mlp.act = nn.ReLU()

    twin_that(spoil)
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        lm = load()
    assert lm.attention == "eager"
    (record,) = [record for record in caplog.records if record.name == forward.__name__]
    assert record.message.startswith("eager attention: SDPA's residuals differ by ")
    assert record.message.endswith(", more than 1e-04")
    assert torch.equal(lm.residuals(TOKENS, [2])[2], expected)


def test_nan_is_not_equal(load, twin_that):
    def spoil(twin):
        twin.transformer.h[0].ln_1 = nn.LayerNorm(16)
        nn.init.constant_(twin.transformer.h[0].ln_1.weight, float("nan"))

    twin_that(spoil)
    assert load().attention == "eager"


def test_a_model_that_refuses_stays_with_the_bridge(load, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("no SDPA here\nand more")

    monkeypatch.setattr(forward.SdpaForward, "__init__", refuse)
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        lm = load()
    assert lm.attention == "eager"
    assert "eager attention: the plain model cannot be used (no SDPA here)" in caplog.messages


def test_a_model_without_a_copy_stays_with_the_bridge(load, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no copy")

    monkeypatch.setattr(forward.copy, "deepcopy", lambda *_: refuse())
    assert forward.copy_sharing_weights(nn.Linear(1, 1)) is None


def test_blocks_that_are_called_by_keyword_are_hooked_too():
    hook = forward._on_input(lambda residual: residual + 1)
    args, kwargs = hook(nn.Identity(), (), {"hidden_states": torch.zeros(2), "more": 3})
    assert args == ()
    assert torch.equal(kwargs["hidden_states"], torch.ones(2))
    assert kwargs["more"] == 3


def test_blocks_that_need_the_earlier_ones_run_in_whole_passes(load, twin_that, caplog):
    def tie(twin):
        first, last = twin.transformer.h[0], twin.transformer.h[2]
        hand, run = first.forward, last.forward

        def give(*args, **kwargs):
            last.handed = True
            return hand(*args, **kwargs)

        def need(*args, **kwargs):
            if last.handed is None:
                raise AttributeError("nothing was handed on")
            return run(*args, **kwargs)

        first.forward, last.forward = give, need
        twin.register_forward_pre_hook(lambda *_: vars(last).update(handed=None))

    expected = load().losses(TOKENS, 1, torch.zeros_like)
    twin_that(tie)
    lm = load()
    assert lm.attention == "sdpa"
    residual = lm.residuals(TOKENS, [1])[1]
    with caplog.at_level(logging.INFO, logger=forward.__name__):
        assert torch.equal(lm.losses(TOKENS, 1, torch.zeros_like, residual), expected)
    assert lm._forward._begins == {1: False}
    why = "evaluation in whole passes: none can begin at layer 1 (nothing was handed on)"
    assert caplog.messages.count(why) == 1
    assert [block.forward.__name__ for block in lm._forward.blocks] == ["give", "forward", "need"]


def test_what_a_block_remembers_of_an_earlier_pass_does_not_pass_for_equal(load, twin_that):
    def tie(twin):
        first, last = twin.transformer.h[0], twin.transformer.h[2]
        hand, run = first.forward, last.forward
        first.register_forward_pre_hook(lambda _, args: vars(last).update(now=args[0]))

        def give(residual, *args, **kwargs):
            last.handed = residual
            return hand(residual, *args, **kwargs)

        def need(residual, *args, **kwargs):
            return run(residual + (last.handed - last.now), *args, **kwargs)

        first.forward, last.forward = give, need

    expected = load().losses(TOKENS, 1, torch.zeros_like)
    twin_that(tie)
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
