import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.activations import ActivationBatch, ActivationStream, BadActivationsError
from sae_sweep.config import ActivationsConfig, ConfigError, PackingConfig, RunConfig, SaeSweepError
from sae_sweep.text import TrainingSequences
from tests.activations.conftest import TEXT
from tests.text.helpers import ListText

WORDS = TEXT.split()


def config(**keys):
    parts = {
        "batch": 32,
        "tokens": 3200,
        "layer": 1,
        "packing": PackingConfig(seq_len=16),
        "activations": ActivationsConfig(buffer_tokens=200, lm_batch=5),
    }
    return RunConfig(**{**parts, **keys})


def sequences(lm, cfg, exhausted="repeat"):
    documents = [[" ".join(WORDS[start : start + 9])] for start in range(len(WORDS))]
    return TrainingSequences(
        ListText(documents, exhausted=exhausted), cfg.packing, lm.tokenizer, cfg.data_seed
    )


def make(lm, cfg=None, layers=(1,), exhausted="repeat"):
    cfg = cfg or config()
    return ActivationStream(lm, sequences(lm, cfg, exhausted), cfg, layers)


def next_batches(stream, n):
    return [next(stream) for _ in range(n)]


def same(ours, theirs, layer=1):
    assert [batch.step for batch in ours] == [batch.step for batch in theirs]
    return all(
        torch.equal(one.activations[layer], other.activations[layer])
        for one, other in zip(ours, theirs, strict=True)
    )


def test_batches_are_full_and_in_float32(lm):
    for batch in next_batches(make(lm, layers=[0, 2]), 12):
        assert set(batch.activations) == {0, 2}
        for rows in batch.activations.values():
            assert rows.shape == (32, 16)
            assert rows.dtype == torch.float32


def test_a_buffer_holds_each_unmasked_token_once_shuffled(lm):
    cfg = config(batch=16)
    tokens = sequences(lm, cfg).read(200 // 16)
    residual = lm.residuals(torch.from_numpy(tokens).long(), [1])[1]
    expected = residual[torch.from_numpy(tokens != 0)]
    batches = next_batches(make(lm, cfg), len(expected) // 16)
    drawn = torch.cat([batch.activations[1] for batch in batches])
    places = [int((expected == row).all(dim=1).nonzero()[0]) for row in drawn]
    assert len(set(map(tuple, drawn.tolist()))) >= len(set(map(tuple, expected.tolist()))) - 16
    assert places != sorted(places)
    assert np.corrcoef(places, range(len(places)))[0, 1] < 0.5


def test_the_study_masks_nothing(lm):
    packing = PackingConfig(seq_len=16, mask_special=False)
    rows = torch.cat(
        [batch.activations[0] for batch in next_batches(make(lm, config(packing=packing), [0]), 6)]
    )
    opening = lm.residuals(torch.zeros(1, 1, dtype=torch.long), [0])[0][0, 0]
    assert (rows == opening).all(dim=1).any()
    rows = torch.cat([batch.activations[0] for batch in next_batches(make(lm, layers=[0]), 6)])
    assert not (rows == opening).all(dim=1).any()


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 25), seed=st.integers(0, 2), shuffle=st.one_of(st.none(), st.integers(0, 1)))
def test_a_restored_stream_continues_bit_for_bit(lm, step, seed, shuffle):
    cfg = config(data_seed=seed, shuffle_seed=shuffle)
    stream = make(lm, cfg)
    next_batches(stream, step)
    position = json.loads(json.dumps(stream.position()))
    assert position["step"] == step
    expected = next_batches(stream, 8)
    again = make(lm, cfg)
    again.restore(position)
    assert again.position() == position
    assert same(next_batches(again, 8), expected)
    stream.restore(position)
    assert same(next_batches(stream, 8), expected)


DAMAGES = [
    *({"step": value} for value in (-1, 1.0, True, "1", None, 2**64)),
    *({"buffer": value} for value in (-1, 1.0, None)),
    *({"batch": value} for value in (-1, 10_000, None)),
    *({"sequences": value} for value in (None, {}, [])),
    {"surprise": 1},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_position_of_no_stream_is_one_clear_error(lm, damage):
    with pytest.raises(SaeSweepError, match="the checkpoint's position is not one"):
        next_after(make(lm), {**make(lm).position(), **damage})


def next_after(stream, position):
    stream.restore(position)
    return next(stream)


def test_layers_and_lm_batch_do_not_change_the_order(lm):
    alone, together = next_batches(make(lm), 15), next_batches(make(lm, layers=[0, 1, 2]), 15)
    assert same(alone, together)
    longer = make(lm, config(activations=ActivationsConfig(buffer_tokens=200, lm_batch=64)))
    for one, other in zip(next_batches(longer, 15), alone, strict=True):
        torch.testing.assert_close(one.activations[1], other.activations[1], rtol=1e-4, atol=1e-6)


def test_each_seed_has_its_own_order(lm):
    base = next_batches(make(lm, config()), 3)
    assert not same(next_batches(make(lm, config(data_seed=1)), 3), base)
    shuffled = next_batches(make(lm, config(shuffle_seed=1)), 3)
    assert not same(shuffled, base)
    assert same(next_batches(make(lm, config(shuffle_seed=0)), 3), base)


def test_each_buffer_has_its_own_order(lm):
    packing = PackingConfig(seq_len=16, separate_documents=False)  # only BOS is masked: buffers of one size
    stream = make(lm, config(packing=packing))
    orders = [stream.next_buffer().order for _ in range(4)]
    assert len({order.shape for order in orders}) == 1
    assert len({tuple(order.flatten().tolist()) for order in orders}) == 4


def test_activations_are_rounded_to_their_dtype(lm):
    rounded = config(activations=ActivationsConfig(buffer_tokens=200, lm_batch=5, dtype="bfloat16"))
    for ours, raw in zip(next_batches(make(lm, rounded), 8), next_batches(make(lm), 8), strict=True):
        assert torch.equal(ours.activations[1], raw.activations[1].bfloat16().float())
        assert not torch.equal(ours.activations[1], raw.activations[1])


class Spoiled:
    """A language model with a bad value in one layer at every occurrence of one token."""

    def __init__(self, lm, layer, value, token):
        self._lm, self._layer, self._value, self._token = lm, layer, value, token

    def __getattr__(self, name):
        return getattr(self._lm, name)

    def residuals(self, tokens, layers):
        residuals = self._lm.residuals(tokens, layers)
        if self._layer in residuals:
            spoiled = residuals[self._layer].clone()
            spoiled[tokens == self._token, 3] = self._value
            residuals[self._layer] = spoiled
        return residuals


@pytest.mark.parametrize(
    ("value", "dtype", "problem"),
    [
        (float("nan"), "auto", "NaN or inf in the activations"),
        (float("inf"), "auto", "NaN or inf in the activations"),
        (-70_000.0, "float16", "activation 70000 overflows float16"),
    ],
)
def test_bad_activations_stop_their_layer_at_their_step(lm, value, dtype, problem):
    cfg = config(activations=ActivationsConfig(buffer_tokens=200, lm_batch=5, dtype=dtype))
    clean = next_batches(make(lm, cfg), 20)
    documents = sequences(lm, cfg)
    rare = int(np.unique(documents.read(30), return_counts=True)[0][-1])
    spoiled = make(Spoiled(lm, 2, value, rare), cfg, layers=[1, 2])
    passed: list[ActivationBatch] = []
    with pytest.raises(BadActivationsError) as caught:
        passed.extend(batch for batch in spoiled)
    step = len(passed)
    assert all(torch.isfinite(batch.activations[2]).all() for batch in passed)
    assert str(caught.value).startswith(f"layer 2, step {step}: {problem}")
    assert (caught.value.layer, caught.value.step) == (2, step)
    assert same(passed, clean[:step])
    rest = make(lm, cfg)
    rest.restore(spoiled.position())
    assert same(next_batches(rest, 20 - step), clean[step:])


def test_bad_rows_that_fill_no_batch_do_no_harm(lm):
    stream = make(lm)
    buffer = stream.next_buffer()
    used = buffer.order.flatten().tolist()
    (dropped, *_) = set(range(len(buffer.tokens))) - set(used)
    assert stream._first_bad(buffer.order, {dropped: float("nan")}) is None
    bad = dict.fromkeys((dropped, used[70], used[40]), float("nan"))
    assert stream._first_bad(buffer.order, bad)[0] == 40 // 32


def short(lm, buffer_tokens=10_000, tokens=320, exhausted="repeat", **keys):
    cfg = config(
        tokens=tokens, activations=ActivationsConfig(buffer_tokens=buffer_tokens, lm_batch=5), **keys
    )
    return make(lm, cfg, exhausted=exhausted), cfg


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("tokens", [32, 50, 320, 3200])
def test_for_a_budget_below_the_buffer_no_sequence_more_than_it_needs_is_read(lm, tokens, mask):
    stream, cfg = short(lm, tokens=tokens, packing=PackingConfig(seq_len=16, mask_special=mask))
    before = lm.tokens_read
    batches = next_batches(stream, cfg.steps)
    read = lm.tokens_read - before
    fewer = sequences(lm, cfg).read(read // 16 - 1)
    assert int((fewer != 0).sum() if mask else fewer.size) < cfg.steps * 32
    assert read < 1.6 * tokens + 16
    assert len(batches) == stream.buffer_steps == cfg.steps
    rows = [tuple(row) for batch in batches for row in batch.activations[1].tolist()]
    assert len(rows) == cfg.steps * 32


@pytest.mark.parametrize("buffer_tokens", [321, 330, 400, 2000])
def test_a_budget_below_the_buffer_gives_one_content_whatever_the_buffer(lm, buffer_tokens):
    (stream, cfg), (other, its) = short(lm), short(lm, buffer_tokens)
    assert cfg.run_id({}) == its.run_id({})
    assert same(next_batches(stream, 10), next_batches(other, 10))


def test_a_budget_of_a_whole_buffer_keeps_its_content_and_its_id():
    keys = {"tokens": 320, "activations": ActivationsConfig(buffer_tokens=320)}
    assert config(**keys).stream_identity()["activations"] == {"buffer_tokens": 320, "dtype": "auto"}
    keys["activations"] = ActivationsConfig(buffer_tokens=321)
    assert config(**keys).stream_identity()["activations"] == {"buffered_inputs": 320, "dtype": "auto"}


def test_a_short_stream_is_restored_at_every_step(lm):
    stream, cfg = short(lm)
    positions = [json.loads(json.dumps(stream.position()))]
    batches = []
    for _ in range(cfg.steps):
        batches.append(next(stream))
        positions.append(json.loads(json.dumps(stream.position())))
    for step, position in enumerate(positions[:-1]):
        again, _ = short(lm)
        again.restore(position)
        assert same(next_batches(again, cfg.steps - step), batches[step:])


def test_a_short_stream_of_special_tokens_ends_with_an_error(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "special_ids", frozenset(range(10_000)))
    with pytest.raises(SaeSweepError, match="0 of the 688 tokens of a buffer are not special tokens"):
        next(short(lm)[0])


def test_a_short_stream_of_a_text_that_stops_ends(lm):
    batches = list(short(lm, tokens=9600, exhausted="stop")[0])
    assert 0 < len(batches) < 40


def test_a_text_that_stops_ends_the_stream(lm):
    batches = list(make(lm, exhausted="stop"))
    assert 0 < len(batches) < 40
    assert all(len(batch.activations[1]) == 32 for batch in batches)


def test_a_buffer_below_a_batch_grows_to_one(lm):
    stream = make(lm, config(activations=ActivationsConfig(buffer_tokens=1, lm_batch=5)))
    assert len(next_batches(stream, 3)) == 3


def test_a_buffer_of_special_tokens_is_refused(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "special_ids", frozenset(range(10_000)))
    with pytest.raises(
        SaeSweepError, match=r"0 of the 192 tokens of a buffer are not special tokens, fewer than batch=32: "
    ):
        next(make(lm, config()))


def test_what_the_model_lacks_is_refused_before_anything_runs(lm):
    with pytest.raises(ConfigError) as caught:
        make(lm, config(packing=PackingConfig(seq_len=65)), layers=[1, 7])
    assert caught.value.problems == (
        "layer=7: tiny has layers 0 to 2",
        "packing.seq_len=65: tiny reads at most 64 tokens",
    )


def test_epochs_are_counted(lm):
    stream = make(lm)
    next_batches(stream, 30)
    assert stream.epochs > 1
