"""Changed positional embeddings against other weights, and the folded unembedding against logits."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from sae_sweep.activations import load_language_model
from sae_sweep.activations.positions import PositionChange
from sae_sweep.config import ModelConfig, SaeSweepError
from tests.activations.conftest import save_model

SEQ = 24
TINY = {"vocab_size": 300, "hidden_size": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
LEARNED = {
    "opt": (
        OPTForCausalLM,
        OPTConfig(**TINY, **HEADS, ffn_dim=32, max_position_embeddings=SEQ, word_embed_proj_dim=16),
        "model.decoder.embed_positions.weight",
        2,
    ),
    "gpt_neo": (
        GPTNeoForCausalLM,
        GPTNeoConfig(
            **TINY,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=SEQ,
        ),
        "transformer.wpe.weight",
        0,
    ),
    "gpt_bigcode": (
        GPTBigCodeForCausalLM,
        GPTBigCodeConfig(
            vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=SEQ, bos_token_id=0, eos_token_id=0
        ),
        "transformer.wpe.weight",
        0,
    ),
}
OTHERS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**TINY, **HEADS, intermediate_size=32, num_key_value_heads=2)),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(**TINY, **HEADS, intermediate_size=32, num_key_value_heads=2, head_dim=8),
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**TINY, **HEADS, intermediate_size=32)),
    "bloom": (BloomForCausalLM, BloomConfig(**TINY, n_layer=2, n_head=2)),
}
CHANGES = [
    PositionChange(kind, per_sequence, move_first, seed=3)
    for kind, per_sequence in (("zero", False), ("shuffle", False), ("shuffle", True))
    for move_first in (False, True)
]


def load(folder, fast=True):
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_language_model(config, torch.device("cpu"), fast=fast)


def some_tokens(rows=5):
    tokens = torch.randint(1, 300, (rows, SEQ), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


def rewritten(network, name, offset, order):
    """Write the positional weights of `network` so that position p has the embedding of order[p], or none."""
    weights = network.get_parameter(name)
    before = weights.detach().clone()
    with torch.no_grad():
        for position, source in enumerate(order):
            weights[position + offset] = 0 if source is None else before[source + offset]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", ["gpt2", *LEARNED])
def test_changes_equal_a_network_with_other_weights(tmp_path, model_folder, family, fast):
    name, offset, folder = "transformer.wpe.weight", 0, model_folder
    if family != "gpt2":
        kind, config, name, offset = LEARNED[family]
        folder = save_model(tmp_path, kind, config)
    lm, tokens = load(folder, fast), some_tokens(2)
    for change in CHANGES:
        with lm.changed_positions(change):
            found = lm.losses(tokens)
            residuals = lm.residuals(tokens, [1])[1]
        for row in tokens:
            order = [None] * SEQ
            if change.kind == "shuffle":
                order = change._permutations(row[None])[0].tolist()
                assert sorted(order) == list(range(SEQ))
                assert change.move_first or order[0] == 0
            elif not change.move_first:
                order[0] = 0
            network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
            rewritten(network, name, offset, order)
            with torch.no_grad():
                out = network(row[None], output_hidden_states=True)
            expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], row[1:], reduction="none")
            at = (tokens == row).all(1).nonzero()[0, 0]
            torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(residuals[at], out.hidden_states[1][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_every_pass_sees_the_same_change_and_none_sees_it_afterwards(lm, change):
    tokens = some_tokens()
    before = lm.losses(tokens)
    with lm.changed_positions(change):
        residuals = lm.residuals(tokens, [2])[2]
        changed = lm.losses(tokens)
        again = lm.losses(tokens, 2, lambda x: x, residuals)
        in_parts = torch.cat([lm.losses(tokens[:2]), lm.losses(tokens[2:])])
    torch.testing.assert_close(again, changed)
    torch.testing.assert_close(in_parts, changed)
    assert not torch.allclose(changed, before)
    assert torch.equal(lm.losses(tokens), before)


def test_permutations_depend_on_the_seed_and_those_per_sequence_on_its_tokens():
    tokens = some_tokens()
    one = PositionChange("shuffle", per_sequence=True, seed=1)
    orders = one._permutations(tokens)
    assert len({tuple(order) for order in orders.tolist()}) == len(tokens)
    assert torch.equal(one._permutations(tokens[2:3])[0], orders[2])
    assert not torch.equal(PositionChange("shuffle", per_sequence=True, seed=2)._permutations(tokens), orders)
    fixed = [PositionChange("shuffle", seed=seed)._permutations(tokens) for seed in (1, 1, 2)]
    assert torch.equal(fixed[0], fixed[1])
    assert not torch.equal(fixed[0], fixed[2])


def test_an_error_inside_leaves_the_model_as_it_was(lm):
    tokens = some_tokens()
    before = lm.losses(tokens)
    with pytest.raises(ZeroDivisionError), lm.changed_positions(PositionChange("zero")):
        raise ZeroDivisionError
    assert torch.equal(lm.losses(tokens), before)


@pytest.mark.parametrize("family", OTHERS)
def test_models_without_learned_positions_refuse(tmp_path, family):
    lm = load(save_model(tmp_path, *OTHERS[family]))
    with pytest.raises(SaeSweepError, match="has no learned positional embeddings"):
        lm.check_changes_positions()
    with pytest.raises(SaeSweepError, match=r"analysis\.positions=none"), lm.changed_positions(CHANGES[0]):
        pass


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", ["gpt2", *LEARNED, *OTHERS])
def test_the_unembedding_is_the_slope_of_the_logits(tmp_path, model_folder, family, fast):
    """A small step along a direction moves the logits as the folded unembedding says, up to a factor."""
    folder = model_folder
    if family != "gpt2":
        folder = save_model(tmp_path, *(LEARNED | OTHERS)[family][:2])
    lm = load(folder, fast)
    tokens = some_tokens(2)
    unembedding = lm.unembedding(tokens)
    assert unembedding.vocabulary == 300
    network, last = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    norm = network.get_submodule(lm._components["ln_final"])
    step = torch.randn(16, generator=torch.Generator().manual_seed(0))
    handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        network(tokens)
        handle.remove()
        x = last[0][0, 5].double()
        fixed = torch.linalg.qr(torch.stack([x, x - x.mean()], 1)).Q  # neither norm of x changes at first
        step = step.double() - fixed @ (fixed.T @ step.double())
        head, norm = network.get_output_embeddings().double(), norm.double()

        def logits(residual):
            out = head(norm(residual[None, None]))[0, 0].double()
            return out - out.mean()

        slope = (logits(x + 1e-4 * step) - logits(x - 1e-4 * step)) / 2e-4
    effect = unembedding.effects(step[None].float())[0].double()
    assert float(torch.nn.functional.cosine_similarity(effect, slope, dim=0)) > 0.9999
