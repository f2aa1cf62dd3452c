"""Domains: what BM25 selects, on both sides of the held-out split, and what selects nothing."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_sweep.config import DomainDataset, FilesDataset, SaeSweepError
from sae_sweep.store import write_json, write_record
from sae_sweep.text import domain, fingerprint, open_text
from sae_sweep.text.domain import DomainText, bm25, nearness, selection_fingerprint
from sae_sweep.text.open import _open_domain
from tests.text.helpers import ListText

pytest.importorskip("bm25s")

TRAIN = [
    "the cat sat",
    "await coroutine",
    "the dog ran",
    "await",
    "a coroutine in a long story of other things",
]


def _domain(keywords: list[str], documents: int = 10, **keys: Any) -> DomainDataset:
    return DomainDataset(of="list", keywords=keywords, documents=documents, **keys)


def _read(text: DomainText) -> list[str]:
    return [document for unit in range(text.units) for document, _ in text.read(unit)]


def _naive(documents: list[str], words: list[str]) -> list[float]:
    """Lucene's BM25, by its formula."""
    split = [[word for word in document.lower().split() if len(word) > 1] for document in documents]
    mean = np.mean([len(words) for words in split])
    scores = []
    for own in split:
        score = 0.0
        for word in words:
            holding = sum(word in other for other in split)
            idf = np.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            tf = own.count(word)
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(own) / mean))
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula() -> None:
    words = ["await", "coroutine"]
    found = bm25(TRAIN, [words, ["cat"], ["unicorn"]])
    np.testing.assert_allclose(found[0], _naive(TRAIN, words), rtol=1e-5)
    np.testing.assert_allclose(found[1], _naive(TRAIN, ["cat"]), rtol=1e-5)
    assert not found[2].any()


def _seeds(folder: Path, *documents: str) -> str:
    folder.mkdir()
    for number, text in enumerate(documents):
        (folder / f"{number}.txt").write_text(text)
    return str(folder)


def test_what_many_examples_share_counts_more_than_a_long_one(tmp_path: Path) -> None:
    long = "the cat sat and sat, " + "and the cat ran " * 20
    seeds = _seeds(tmp_path / "seeds", "await", "coroutine", long)
    dataset = DomainDataset(of="list", seeds=seeds, documents=1)
    scores = bm25(TRAIN, [["await"], ["coroutine"], ["and", "cat", "ran", "sat", "the"]])
    expected = (scores / scores.max(1, keepdims=True)).mean(0)
    found = nearness(dataset, TRAIN)
    np.testing.assert_allclose(np.where(np.isfinite(found), found, 0), expected, rtol=1e-5)
    assert scores[2].max() > scores[:2].sum(0).max()
    assert _read(DomainText(dataset, ListText([TRAIN], ["await coroutine"]))) == [TRAIN[1]]
    assert np.isneginf(nearness(dataset, ["elephant", TRAIN[0]])).tolist() == [True, False]


def test_seeds_are_read_whatever_would_be_held_out_and_are_known_by_their_content(tmp_path: Path) -> None:
    one = DomainDataset(of="list", seeds=_seeds(tmp_path / "one", "await"), source=FilesDataset(path="x"))
    two = DomainDataset(of="list", seeds=_seeds(tmp_path / "two", "await"), source=FilesDataset(path="x"))
    other = DomainDataset(of="list", seeds=_seeds(tmp_path / "other", "a cat"), source=FilesDataset(path="x"))
    assert selection_fingerprint(one) == selection_fingerprint(two) != selection_fingerprint(other)
    assert _read(DomainText(one, ListText([TRAIN], ["await"]))) == [TRAIN[1], TRAIN[3]]


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        (["unicorn"], "seeds: none of the 5 documents of a list has one of their words"),
        (["?"], "seeds: none of the 5 documents of a list has one of their words"),
        ([" "], "there is no text to read"),
        ([], r"dataset\.seeds=.*: no .*\.txt.* file there"),
    ],
)
def test_seeds_that_say_nothing_are_one_line(tmp_path: Path, documents: list[str], problem: str) -> None:
    dataset = DomainDataset(of="list", seeds=_seeds(tmp_path / "seeds", *documents))
    with pytest.raises(SaeSweepError, match=problem):
        DomainText(dataset, ListText([TRAIN], ["await"]))


def test_a_selection_is_kept_for_as_long_as_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        Path(_seeds(tmp_path / f"{number}", f"{TRAIN[number % 5]} {number}"))
    dataset = _domain(["await", "coroutine"], source=FilesDataset(path=str(tmp_path), held_out_every=4))
    asked: list[int] = []

    def counted(dataset: DomainDataset, documents: Sequence[str]) -> np.ndarray:
        asked.append(len(documents))
        return nearness(dataset, documents)

    def select() -> tuple[list[str], list[str], str]:
        _open_domain.cache_clear()  # as another process
        text = open_text(dataset, cache)
        assert isinstance(text, DomainText)
        return _read(text), list(text.held_out()), text.summary

    monkeypatch.setattr(domain, "nearness", counted)
    cache = tmp_path / "cache"
    first = select()
    assert (len(first[0]), asked) == (10, [40])
    assert select() == first
    assert asked == [40]
    assert "cannot" not in caplog.text
    (kept,) = (cache / "domains").iterdir()
    whole = json.loads(kept.read_text())
    del whole["checksum"], whole["format"]
    damages: list[Callable[[], object]] = [
        lambda: kept.write_text(kept.read_text()[:-30]),
        lambda: write_json(kept, {**whole, "train": [0]}),  # no checksum
        lambda: write_record(kept, {"train": [0]}),
    ]
    for damage in damages:
        damage()
        asked.clear()
        caplog.clear()
        assert select() == first
        assert asked == [40]
        assert f"cannot read {kept}" in caplog.text
        assert "; the documents are selected again" in caplog.text
    write_record(kept, {**whole, "of_train": 9})  # of another text
    assert select() == first
    assert asked == [40, 40]
    dataset = _domain(["cat"], source=dataset.source)
    assert all("cat" in text for text in select()[0])
    assert len(list((cache / "domains").iterdir())) == 2


def test_where_a_selection_cannot_be_kept_it_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "domains").touch()
    text = DomainText(_domain(["await"]), ListText([TRAIN], ["await"]), tmp_path / "domains" / "one.json")
    assert _read(text) == [TRAIN[1], TRAIN[3]]
    assert f"cannot write {tmp_path}/domains" in caplog.text
    assert "; until then each command selects the documents anew" in caplog.text


def test_a_binary_file_is_no_seed(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    dataset = DomainDataset(of="list", seeds=str(tmp_path))
    problem = r"binary\.txt is not UTF-8 text: .* leave it out of dataset\.seeds$"
    with pytest.raises(SaeSweepError, match=problem):
        DomainText(dataset, ListText([TRAIN], ["await"]))


def test_seeds_that_are_not_there_are_one_line() -> None:
    nowhere = DomainDataset(of="list", seeds="nowhere")
    with pytest.raises(SaeSweepError, match=r"dataset\.seeds=nowhere: no such file or folder"):
        DomainText(nowhere, ListText([TRAIN], ["await"]))
    with pytest.raises(SaeSweepError, match=r"dataset\.seeds=nowhere: no such file or folder"):
        selection_fingerprint(nowhere)


def test_the_nearest_documents_are_read_in_the_order_of_their_text() -> None:
    source = ListText([TRAIN[:2], TRAIN[2:]], ["await me", "the end", "coroutine"])
    every = DomainText(_domain(["await", "coroutine"]), source)
    assert _read(every) == [TRAIN[1], TRAIN[3], TRAIN[4]]
    assert list(every.held_out()) == ["await me", "coroutine"]
    assert "3 of 5 training documents and 2 of 3 held-out ones of a list" in every.summary
    best = DomainText(_domain(["await", "coroutine"], documents=2), source)
    assert _read(best) == [TRAIN[1], TRAIN[3]]
    farther = ["await", "a coroutine, far from where the others of its kind are"]
    assert list(DomainText(_domain(["await", "coroutine"], 2), ListText([TRAIN], farther)).held_out()) == [
        "await"
    ]
    assert len(list(every.read(0, 1))) == 0


@pytest.mark.parametrize(
    ("keywords", "held_out", "problem"),
    [
        (["unicorn"], ["await"], "none of the 5 documents of a list has one of their words"),
        (["await"], ["the end"], "no held-out document of a list is as near to them as the 2 selected ones"),
    ],
)
def test_keywords_that_select_nothing_are_one_line(
    keywords: list[str], held_out: list[str], problem: str
) -> None:
    with pytest.raises(SaeSweepError, match=problem):
        DomainText(_domain(keywords), ListText([TRAIN], held_out))


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(SaeSweepError, match=r"pip install \"sae-sweep\[domain\]\""):
        bm25(TRAIN, ["await"])


def test_a_domain_is_its_words_and_the_content_of_its_text(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(40):
            (tmp_path / folder / f"{number}.txt").write_text(f"{TRAIN[number % 5]} number {number}")
    one, two = (FilesDataset(path=str(tmp_path / folder)) for folder in ("one", "two"))

    def print_(*keywords: str, source: FilesDataset = one, documents: int = 10) -> str:
        return fingerprint(_domain(list(keywords), documents, source=source), tmp_path)

    known = print_("await", "Coroutine")
    assert print_("coroutine await", "await", source=two) == known
    others = {print_("await"), print_("await", "coroutine", documents=9), print_("cat"), known}
    assert len(others) == 4
    dataset = _domain(["cat"], source=one)
    text = open_text(dataset, tmp_path)
    assert isinstance(text, DomainText)
    assert open_text(dataset, tmp_path) is text
    assert text.units == 8 - len(list(text.held_out()))
    (tmp_path / "one" / "0.txt").write_text("a cat and a cat")
    assert open_text(dataset, tmp_path) is not text
