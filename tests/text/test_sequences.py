import dataclasses
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import PackingConfig, SaeSweepError
from sae_sweep.text import sequences as sequences_module
from sae_sweep.text.sequences import TrainingSequences, held_out_documents, held_out_sequences
from tests.text.helpers import EOT, ByteTokenizer, ListText

PACKING = PackingConfig(seq_len=8)


def make(units, seed=0, exhausted="repeat", packing=PACKING):
    return TrainingSequences(ListText(units, exhausted=exhausted), packing, ByteTokenizer(), seed)


def letters(n, length=6):
    return [[chr(97 + index) * length] for index in range(n)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sequences_module, "BLOCK_CHARS", 40)


def documents_of(tokens):
    """Return the text of all documents in the sequences, joined, without special tokens."""
    content = bytes(token for token in tokens[:, 1:].flatten().tolist() if token != EOT)
    return content.decode()


def test_an_epoch_holds_every_document_once():
    text = documents_of(make(letters(20)).read(20))  # 20 x (6 letters + EOT) = 20 x 7 tokens
    assert sorted(text) == sorted("".join(unit[0] for unit in letters(20)))


def test_each_epoch_and_each_seed_has_its_own_order():
    stream = make(letters(20))
    first, second = documents_of(stream.read(20)), documents_of(stream.read(20))
    assert sorted(first) == sorted(second)
    assert first != second
    assert documents_of(make(letters(20), seed=1).read(20)) not in (first, second)
    assert documents_of(make(letters(20)).read(20)) == first


def test_the_order_does_not_depend_on_how_it_is_read():
    stream = make(letters(9))
    pieces = np.concatenate([stream.read(n) for n in (1, 5, 2, 30)])
    np.testing.assert_array_equal(pieces, make(letters(9)).read(38))


@settings(max_examples=40, deadline=None)
@given(
    units=st.lists(
        st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    before=st.integers(0, 30),
    seed=st.integers(0, 3),
    every=st.booleans(),
)
def test_restoring_a_position_repeats_the_stream(units, before, seed, every):
    packing = PackingConfig(seq_len=8, bos_every_sequence=every)
    stream = make(units, seed, packing=packing)
    stream.read(before)
    position = json.loads(json.dumps(stream.position()))
    expected = stream.read(15)
    again = make(units, seed, packing=packing)
    again.restore(position)
    np.testing.assert_array_equal(again.read(15), expected)
    again.restore(position)
    np.testing.assert_array_equal(again.read(15), expected)


def test_restoring_reads_no_more_than_a_block():
    units = [["a" * 20] for _ in range(1000)]
    stream = make(units)
    stream.read(2000)
    source, tokenizer = ListText(units), ByteTokenizer()
    again = TrainingSequences(source, PACKING, tokenizer, 0)
    again.restore(stream.position())
    again.read(1)
    assert source.documents_read <= 4
    assert tokenizer.seen <= 80


def test_a_position_of_another_text_is_refused():
    position = make(letters(5)).position()
    with pytest.raises(SaeSweepError, match="has changed since the checkpoint"):
        make(letters(6)).restore(position)


def read_at(position):
    stream = make(letters(5))
    stream.restore(position)
    return stream.read(1)


@pytest.mark.parametrize(
    "damage",
    [
        {"emitted": 7},
        {"emitted": -1},
        {"emitted": 0.5},
        {"emitted": True},
        {"emitted": None},
        {"carry": [1] * 8},
        {"carry": [-1]},
        {"carry": [2**31]},
        {"carry": ["a"]},
        {"carry": 3},
        {"cursor": [0, 5, None, 0]},
        {"cursor": [0, -1, None, 0]},
        {"cursor": [-1, 0, None, 0]},
        {"cursor": [2**64, 0, None, 0]},
        {"cursor": [0, 0, "x", 0]},
        {"cursor": [0, 0, -1, 0]},
        {"cursor": [0, 0, None]},
        {"cursor": {"epoch": 0}},
        {"cursor": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_position_outside_the_text_is_one_clear_error_and_no_endless_loop(damage):
    position = {**make(letters(5)).position(), **damage}
    with pytest.raises(SaeSweepError, match=r"position is not one in a list .*delete the run's checkpoint"):
        read_at(position)


@pytest.mark.parametrize("position", [None, [], "x", {}])
def test_what_is_no_position_is_refused(position):
    with pytest.raises(SaeSweepError, match="its keys differ"):
        make(letters(5)).restore(position)


def test_text_that_repeats_says_so_once_and_at_powers_of_ten(caplog):
    source = ListText(letters(10))
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # as for the cache: another stream of the same text does not say it again
            TrainingSequences(source, PACKING, ByteTokenizer(), 0).read(1025)
    assert caplog.messages == [
        "a list: all 60 tokens read once; from here on it repeats",
        "a list: all 60 tokens read 10 times",
        "a list: all 60 tokens read 100 times",
    ]


def test_an_epoch_has_the_tokens_that_documents_have_after_they_are_cut(caplog):
    cut = dataclasses.replace(PACKING, max_document_tokens=4)
    with caplog.at_level(logging.INFO):
        TrainingSequences(ListText(letters(10)), cut, ByteTokenizer(), 0).read(30)
    assert caplog.messages == ["a list: all 40 tokens read once; from here on it repeats"]


def test_a_document_of_a_million_characters_is_named_once_unless_it_is_cut(caplog):
    book = [["a" * (2**20 + 1)], ["b" * (2**20 + 2)], ["c"]]
    TrainingSequences(ListText(book), PACKING, ByteTokenizer(), 0).read(4_000)
    assert len(caplog.messages) == 1
    assert "characters, and is read whole: a short run sees few documents" in caplog.text
    caplog.clear()
    cut = dataclasses.replace(PACKING, max_document_tokens=100)
    TrainingSequences(ListText(book), cut, ByteTokenizer(), 0).read(4_000)
    assert "read whole" not in caplog.text


def test_epochs_are_counted_by_finished_units():
    stream = make(letters(10))
    stream.read(25)
    assert int(stream.epochs) == 2
    assert 2 <= stream.epochs <= 3


def test_text_that_stops_returns_what_it_has():
    stream = make(letters(10), exhausted="stop")
    assert stream.read(7).shape == (7, 8)
    assert stream.read(7).shape == (3, 8)
    assert stream.read(7).shape == (0, 8)


def test_text_that_must_not_run_out_raises():
    stream = make(letters(10), exhausted="error")
    with pytest.raises(SaeSweepError, match=r"a list ran out after an epoch: lower tokens"):
        stream.read(11)


def test_text_without_tokens_raises_instead_of_looping():
    with pytest.raises(SaeSweepError, match="holds no text to train on"):
        make([["", ""], [""]]).read(1)


def test_held_out_text_keeps_its_order_and_ends_at_the_requested_tokens():
    source = ListText([["x"]], held_out=["a" * 6, "b" * 6, "c" * 6])
    sequences = held_out_sequences(source, PACKING, ByteTokenizer(), tokens=15)
    assert documents_of(sequences) == "a" * 6 + "b" * 6
    assert len(held_out_sequences(source, PACKING, ByteTokenizer(), tokens=10_000)) == 3


def test_held_out_documents_are_cut_alike_and_end_at_the_requested_tokens():
    texts = ["a" * 2000, "b" * 6, "c" * 6, "d" * 6]
    found = held_out_documents(ListText([["x"]], held_out=texts), PACKING, ByteTokenizer(), tokens=1031)
    assert documents_of(found.tokens) == "a" * 1024 + "b" * 6 + "c" * 6
    assert np.bincount(found.owners).tolist() == [147, 1, 1]  # 7 tokens beside BOS
    with pytest.raises(SaeSweepError, match="1 document of the held-out text of a list has tokens, and its"):
        held_out_documents(ListText([["x"]], held_out=["abc", ""]), PACKING, ByteTokenizer(), tokens=100)


def test_held_out_text_too_short_for_a_sequence_raises():
    with pytest.raises(SaeSweepError, match="held-out text of a list does not fill one sequence of 8 tokens"):
        held_out_sequences(ListText([["x"]], held_out=["abc"]), PACKING, ByteTokenizer(), tokens=100)
