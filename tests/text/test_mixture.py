import json
from pathlib import Path

import numpy as np
import pytest

from sae_sweep.config import EmbeddedDataset, FilesDataset, MixDataset, PackingConfig, SaeSweepError
from sae_sweep.text import fingerprint, held_out_sequences, open_text, training_sequences
from sae_sweep.text.mixture import MixedSequences, Mixture
from sae_sweep.text.sequences import TrainingSequences
from tests.text.helpers import ByteTokenizer, ListText

PACKING = PackingConfig(seq_len=8)
LETTERS = "abc"


def _part(letter: str, documents: int = 40, exhausted: str = "repeat") -> ListText:
    """A text of one letter, whose documents have different lengths."""
    return ListText(
        [[letter * (5 + 3 * (number % 7))] for number in range(documents)], [letter * 200], exhausted
    )


def _mixed(*weights: float, exhausted: str = "repeat") -> MixedSequences:
    parts = [_part(letter, exhausted=exhausted) for letter, _ in zip(LETTERS, weights, strict=False)]
    return MixedSequences(Mixture("mixed", parts, weights), PACKING, ByteTokenizer(), 0)


def _letters(sequences: np.ndarray) -> str:
    """The letter of each sequence."""
    return "".join(chr(max(row[row < 256])) for row in sequences)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.37, 0.63), (0.2, 0.3, 0.5)])
def test_the_shares_are_exact_after_any_number_of_sequences(weights: tuple[float, ...]) -> None:
    read = _letters(_mixed(*weights).read(500))
    for number in range(1, 501):
        for letter, weight in zip(LETTERS, weights, strict=False):
            assert abs(read[:number].count(letter) - weight * number) < len(weights) - 0.999


def test_each_part_is_read_as_it_is_read_alone() -> None:
    mixed = _mixed(0.3, 0.7).read(100)
    alone = TrainingSequences(_part("b"), PACKING, ByteTokenizer(), 0).read(70)
    of_b = np.array([letter == "b" for letter in _letters(mixed)])
    np.testing.assert_array_equal(mixed[of_b], alone)


@pytest.mark.parametrize("cut", [0, 1, 7, 133])
def test_a_restored_mixture_goes_on_as_one_that_was_never_cut(cut: int) -> None:
    whole, first, second = _mixed(0.4, 0.6), _mixed(0.4, 0.6), _mixed(0.4, 0.6)
    expected = whole.read(200)[cut:]
    first.read(cut)
    second.restore(json.loads(json.dumps(first.position())))
    np.testing.assert_array_equal(second.read(200 - cut), expected)
    assert second.epochs == whole.epochs > 0


@pytest.mark.parametrize(
    ("position", "why"),
    [
        (None, "its keys differ"),
        ({"counts": [1], "parts": [{}]}, "another number of texts"),
        ({"counts": [1, -1], "parts": [{}, {}]}, "counts="),
        ({"counts": [1, 1], "parts": [{}, {}]}, "its keys differ"),
    ],
)
def test_a_damaged_position_is_refused(position: object, why: str) -> None:
    with pytest.raises(SaeSweepError, match=f"{why}.*delete the run's checkpoint"):
        _mixed(0.4, 0.6).restore(position)  # type: ignore[arg-type]


def test_a_mixture_stops_where_the_first_part_does_and_keeps_its_shares() -> None:
    parts = [_part("a", 10, "stop"), _part("b", 1000, "stop")]
    mixed = MixedSequences(Mixture("mixed", parts, [0.5, 0.5]), PACKING, ByteTokenizer(), 0)
    alone = TrainingSequences(_part("a", 10, "stop"), PACKING, ByteTokenizer(), 0).read(1000)
    read = _letters(mixed.read(1000))
    assert read.count("a") == len(alone)
    assert 0 <= read.count("a") - read.count("b") <= 1
    assert len(mixed.read(10)) == 0
    with pytest.raises(SaeSweepError, match="ran out after an epoch"):
        _mixed(0.5, 0.5, exhausted="error").read(1000)


def test_held_out_sequences_have_the_shares_too() -> None:
    mixture = Mixture("mixed", [_part("a"), _part("b")], [0.75, 0.25])
    tokens = held_out_sequences(mixture, PACKING, ByteTokenizer(), 16 * 8)
    assert _letters(tokens).count("a") == 12
    every = held_out_sequences(
        mixture, PACKING, ByteTokenizer(), 10**6
    )  # 28 sequences of a, and then no more
    assert _letters(every).count("a") == 28
    assert _letters(every).count("b") in (9, 10)


@pytest.fixture
def books(tmp_path: Path) -> dict[str, FilesDataset]:
    """Three folders of text, of which two hold the same."""
    found = {}
    for name, letter in (("one", "a"), ("two", "b"), ("copy", "a")):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(20):
            (folder / f"{number}.txt").write_text(letter * (30 + number))
        found[name] = FilesDataset(name=name, path=str(folder))
    return found


def _mix(books: dict[str, FilesDataset], **weights: float) -> MixDataset:
    return MixDataset(weights=weights, parts={name: books[name] for name in weights})


def test_a_mixture_is_its_content_whatever_its_parts_are_called(
    books: dict[str, FilesDataset], tmp_path: Path
) -> None:
    one = _mix(books, one=0.25, two=0.75)
    print_ = fingerprint(one, tmp_path)
    assert fingerprint(_mix(books, two=0.75, copy=0.25), tmp_path) == print_
    assert fingerprint(_mix(books, one=0.75, two=0.25), tmp_path) != print_
    other = {**books, "two": FilesDataset(path=books["two"].path, held_out_every=7)}
    assert fingerprint(_mix(other, one=0.25, two=0.75), tmp_path) != print_
    orders = [_mix(books, one=0.25, two=0.75), _mix(books, two=0.75, copy=0.25)]
    first, second = (
        training_sequences(open_text(mix, tmp_path), PACKING, ByteTokenizer(), 3).read(50) for mix in orders
    )
    np.testing.assert_array_equal(first, second)
    (tmp_path / "two" / "3.txt").write_text("other")
    assert fingerprint(one, tmp_path) != print_


def test_a_mixture_of_one_text_is_that_text(books: dict[str, FilesDataset], tmp_path: Path) -> None:
    alone = _mix(books, one=0, two=1)
    assert fingerprint(alone, tmp_path) == fingerprint(books["two"], tmp_path)
    assert alone.identity() == books["two"].identity()
    source = open_text(alone, tmp_path)
    assert source.label == open_text(books["two"], tmp_path).label
    stopping = MixDataset(exhausted="stop", weights={"two": 1}, parts=alone.parts)
    assert open_text(stopping, tmp_path).exhausted == "stop"  # type: ignore[union-attr]


def test_the_same_text_twice_is_refused(books: dict[str, FilesDataset], tmp_path: Path) -> None:
    for use in (open_text, fingerprint):
        with pytest.raises(SaeSweepError, match="one and copy are the same text: give it one weight"):
            use(_mix(books, one=0.5, copy=0.5), tmp_path)


def test_embedded_corpora_mix(corpora_cache: Path) -> None:
    names = ("stdlib_docs", "stdlib_code")
    mix = MixDataset(
        weights=dict.fromkeys(names, 0.5), parts={name: EmbeddedDataset(name=name) for name in names}
    )
    text = open_text(mix, corpora_cache)
    assert len(training_sequences(text, PACKING, ByteTokenizer(), 0).read(20)) == 20
