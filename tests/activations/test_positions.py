"""Changed positional embeddings, against networks whose embeddings have other weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from sae_sweep.activations import load_language_model
from sae_sweep.activations import model as model_module
from sae_sweep.activations.positions import PositionChange, learned_positions
from sae_sweep.config import ConfigError, ModelConfig, SaeSweepError
from tests.activations.families import save_family

CPU = torch.device("cpu")
TOKENS = torch.tensor(
    [[0, 5, 9, 0, 33, 120, 7, 8], [0, 200, 0, 0, 41, 42, 43, 8], [0, 5, 9, 0, 33, 120, 7, 9]]
)
LEARNED = {"gpt2": 0, "opt": 2, "opt_post_norm": 2, "gpt_neo": 0, "gpt_bigcode": 0, "openai-gpt": 0}
"""Row of the embedding of position 0."""
CHANGES = [
    PositionChange("zero"),
    PositionChange("zero", move_first=True),
    PositionChange("shuffle", seed=3),
    PositionChange("shuffle", move_first=True),
    PositionChange("shuffle", per_sequence=True, seed=7),
    PositionChange("shuffle", per_sequence=True, move_first=True),
]


@pytest.fixture(scope="module", params=LEARNED)
def family(request, tmp_path_factory):
    return request.param, save_family(tmp_path_factory.mktemp("families") / "m", request.param)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def either(request, family):
    model = ModelConfig(path=str(family[1]), dtype="float32")
    lm = load_language_model(model, CPU, fast=request.param == "sdpa")
    assert lm.attention == request.param
    return lm


@pytest.fixture(scope="module")
def hf(family):
    name, folder = family
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), LEARNED[name]


def permutations(change, tokens):
    """The position whose embedding each token gets: here embeddings are the numbers of positions."""
    numbers = torch.arange(tokens.shape[1], dtype=torch.float32)[None, :, None]
    return change.apply(numbers, tokens)[..., 0].long().expand(len(tokens), -1)


def naive(network, offset, tokens, change):
    """Hidden states and losses of a sequence, from a copy of the network whose embeddings are other ones."""
    network, length = copy.deepcopy(network), len(tokens)
    name = next(name for name, _ in network.named_parameters() if "wpe" in name or "positions" in name)
    rows = network.get_parameter(name)[offset : offset + length]
    first = 0 if change.move_first else 1
    with torch.no_grad():
        if change.kind == "zero":
            rows[first:] = 0
        else:
            rows[:] = rows[permutations(change, tokens[None])[0]]
        out = network(tokens[None], output_hidden_states=True)
    return out.hidden_states, functional.cross_entropy(out.logits[0, :-1], tokens[1:], reduction="none")


def test_every_pass_equals_a_network_with_other_embeddings(either, hf, family, monkeypatch):
    """All changes with one family, and two with each of the others."""
    plain = either.residuals(TOKENS, [0, 1])
    for change in CHANGES if family[0] == "gpt2" else (CHANGES[1], CHANGES[4]):
        with either.changed_positions(change), monkeypatch.context() as patch:
            residuals, losses = either.residuals(TOKENS, [1, 0]), either.losses(TOKENS)
            patch.setattr(model_module, "LOGITS_AT_ONCE", 1)  # a sequence at a time
            assert torch.allclose(either.losses(TOKENS), losses, atol=1e-5)
            spliced = either.losses(TOKENS, 1, lambda x: 2 * x)
            begun = either.losses(TOKENS, 1, lambda x: 2 * x, residuals[1])
        assert torch.allclose(begun, spliced, atol=1e-5)
        for row, tokens in enumerate(TOKENS):
            hidden, expected = naive(*hf, tokens, change)
            torch.testing.assert_close(losses[row], expected, rtol=1e-4, atol=1e-5)
            for layer in (0, 1):
                torch.testing.assert_close(residuals[layer][row], hidden[layer][0], rtol=1e-4, atol=1e-5)
        assert (residuals[0] - plain[0]).abs().max() > 0.1
    after = either.residuals(TOKENS, [0, 1])
    assert all(torch.equal(after[layer], plain[layer]) for layer in (0, 1))


@pytest.mark.parametrize("change", CHANGES[2:], ids=str)
def test_a_shuffle_is_a_permutation_that_the_seed_and_the_sequence_decide(change):
    order = permutations(change, TOKENS)
    assert torch.equal(order.sort(1).values, torch.arange(8).expand(3, -1))
    assert change.move_first or not order[:, 0].any()
    assert torch.equal(
        permutations(change, TOKENS[1:].int()), order[1:]
    )  # however they are cut, whatever the dtype
    assert torch.equal(order[0], order[2]) != change.per_sequence
    other = PositionChange("shuffle", change.per_sequence, change.move_first, change.seed + 1)
    assert not torch.equal(permutations(other, TOKENS), order)


@pytest.mark.parametrize("first", [False, True])
def test_every_position_can_go_anywhere(first):
    """The first position moves if it takes part, and only then."""
    tokens = torch.arange(400 * 4).view(400, 4)
    order = permutations(PositionChange("shuffle", per_sequence=True, move_first=first), tokens)
    places = torch.stack([(order == position).sum(0) for position in range(4)])
    assert bool((places > 0).all()) == first
    assert (places[1:, 1:] > 60).all()


def test_sequences_of_one_token_have_nothing_to_shuffle():
    assert permutations(PositionChange("shuffle"), torch.tensor([[4]])).tolist() == [[0]]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("pythia", "rotary, RoPE"),
        ("llama", "rotary, RoPE"),
        ("gemma", "rotary, RoPE"),
        ("falcon", "rotary, RoPE"),
        ("mpt", "biases of its attention, ALiBi"),
        ("bloom", "biases of its attention, ALiBi"),
        ("falcon_alibi", "biases of its attention, ALiBi"),
        ("xglm", "fixed, or of a kind that is not known here"),
        ("mamba", "none"),
    ],
)
def test_a_model_without_learned_positions_says_what_it_has(tmp_path, name, instead):
    lm = load_language_model(ModelConfig(path=str(save_family(tmp_path / "m", name)), dtype="float32"), CPU)
    with pytest.raises(SaeSweepError) as early:
        lm.check_changes_positions()
    with pytest.raises(SaeSweepError) as caught, lm.changed_positions(PositionChange("zero")):
        pytest.fail("the change was accepted")
    assert str(caught.value) == str(early.value)
    assert str(caught.value) == (
        f"m has no learned positional embeddings to change (its positions: {instead}): "
        "take analysis.positions=none"
    )


def test_a_table_of_sinusoids_is_not_learned():
    table = nn.ModuleDict({"positions": MarianSinusoidalPositionalEmbedding(8, 4)})
    assert learned_positions(table, "positions") is None
    assert learned_positions(nn.ModuleDict({"positions": nn.Embedding(8, 4)}), "positions") is not None


def test_an_unknown_change_is_named():
    with pytest.raises(ConfigError, match="positions=reverse: choose from zero, shuffle"):
        PositionChange("reverse")


def test_nothing_stays_changed_after_an_error(either):
    plain = either.losses(TOKENS)

    def fail(x):
        raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"), either.changed_positions(CHANGES[0]):
        either.losses(TOKENS, 1, fail)
    assert torch.equal(either.losses(TOKENS), plain)


@pytest.mark.parametrize(
    ("lengths", "why"),
    [
        (
            [],
            "a pass looks up no positional embeddings: they cannot be changed; take analysis.positions=none",
        ),
        ([8, 8], "a pass looks up positional embeddings twice: they cannot"),
        ([3], r"positional embeddings of shape \[1, 3, 16\] for tokens of shape \[3, 8\]: they cannot"),
    ],
)
def test_a_pass_that_does_not_look_each_position_up_once_is_not_taken_for_changed(
    lm, monkeypatch, lengths, why
):
    network = lm._forward.network

    def look_up(tokens, use_cache):
        for length in lengths:
            network.transformer.wpe(torch.arange(length)[None])

    monkeypatch.setattr(network, "forward", look_up)
    with pytest.raises(SaeSweepError, match=why), lm.changed_positions(CHANGES[0]):
        network(TOKENS, use_cache=False)
