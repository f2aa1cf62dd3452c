"""Domains: the documents of a text that are nearest to some keywords, or to example documents."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sae_sweep.config import ConfigError, DomainDataset, SaeSweepError, build, digest
from sae_sweep.config.checks import shown
from sae_sweep.config.mixture import words_of
from sae_sweep.store import is_present, read_record, unreadable, write_record
from sae_sweep.text.encoder import embed, encoder_fingerprint
from sae_sweep.text.files import read_documents
from sae_sweep.text.source import Place, TextSource

log = logging.getLogger(__name__)

SELECTION = "bm25-1"
"""Part of the fingerprint; increase the number whenever the same keywords select other documents."""
_SEEDS = "dataset.seeds"


class DomainText(TextSource):
    """The selected documents, in the order of their text; one document per unit.

    Held-out documents of the text are held out here, too, if they are as near to what is sought as the last
    of the selected training documents.
    """

    def __init__(self, dataset: DomainDataset, source: TextSource, kept: Path | None = None) -> None:
        """Read the whole text, and select.

        Args:
            dataset: what to select.
            source: the text.
            kept: file that keeps the selection, for it takes an encoder long to read a whole text.

        Raises:
            SaeSweepError: if no document has any of the words, no held-out document is near enough, the seeds
                or the encoder cannot be read, or the library of BM25 is not installed.
        """
        super().__init__(f"dataset={dataset.name}", dataset.exhausted)
        train = [text for unit in range(source.units) for text, _ in source.read(unit)]
        held_out = list(source.held_out())
        found = _read(kept, len(train), len(held_out)) if kept is not None else None
        if found is None:
            found = _select(dataset, source.label, train, held_out)
            if kept is not None:
                _write(kept, found)
        self._train = [train[place] for place in found.train]
        self._held_out = [held_out[place] for place in found.held_out]
        self.summary = (
            f"{self.label}: {len(found.train):,} of {found.of_train:,} training documents and "
            f"{len(found.held_out):,} of {found.of_held_out:,} held-out ones of {source.label}"
        )

    @property
    def units(self) -> int:
        return len(self._train)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        if place is None:
            yield self._train[unit], 1

    def held_out(self) -> Iterator[str]:
        return iter(self._held_out)


@dataclass(frozen=True)
class _Selected:
    """Places of the selected documents, in rising order."""

    train: list[int]
    held_out: list[int]
    of_train: int
    """Documents of the text."""
    of_held_out: int


def _select(dataset: DomainDataset, label: str, train: Sequence[str], held_out: Sequence[str]) -> _Selected:
    scores = nearness(dataset, [*train, *held_out])
    of_train, of_held_out = scores[: len(train)], scores[len(train) :]
    best = np.argsort(-of_train, kind="stable")[: dataset.documents]
    best = np.sort(best[np.isfinite(of_train[best])])
    words = f"dataset.keywords={shown(dataset.keywords)}"
    where = f"{_SEEDS}={dataset.seeds}" if dataset.seeds else words
    if not len(best):
        raise SaeSweepError(
            f"{where}: none of the {len(train):,} documents of {label} has one of their words"
        )
    near = np.flatnonzero(of_held_out >= of_train[best].min())
    if not len(near):
        raise SaeSweepError(
            f"{where}: no held-out document of {label} is as near to them as the {len(best):,} selected "
            "ones: raise dataset.documents, or seek others"
        )
    return _Selected(best.tolist(), near.tolist(), len(train), len(held_out))


def _read(kept: Path, of_train: int, of_held_out: int) -> _Selected | None:
    """A selection that is kept; None if there is none, or it is damaged, or of another text."""
    if not is_present(kept):
        return None
    try:
        found: _Selected = build(_Selected, read_record(kept, "", old=False))
    except SaeSweepError as error:
        why = unreadable(kept, error) if isinstance(error, ConfigError) else error
        log.warning("%s; the documents are selected again", why)
        return None
    return found if (found.of_train, found.of_held_out) == (of_train, of_held_out) else None


def _write(kept: Path, found: _Selected) -> None:
    """Keep a selection; on a disk that takes none, each command selects anew."""
    try:
        write_record(kept, asdict(found))
    except SaeSweepError as error:
        log.warning("%s; until then each command selects the documents anew", error)


def selection_fingerprint(dataset: DomainDataset) -> list[str]:
    """What is sought beside keywords, by its content: the seeds, and the encoder that compares with them.

    Raises:
        SaeSweepError: if they cannot be read.
    """
    seeds = [digest(sorted(read_documents(dataset.seeds, _SEEDS)))] if dataset.seeds else []
    return seeds + ([encoder_fingerprint(dataset.encoder)] if dataset.encoder else [])


def nearness(dataset: DomainDataset, documents: Sequence[str]) -> Float[np.ndarray, " documents"]:
    """How near each document is to what is sought; minus infinity for one that has none of its words.

    The mean over the seeds, so that what many of them share counts more than what one alone has. BM25 scores
    of a seed grow with its length, so each seed's are divided by their largest (CombSUM, Fox & Shaw 1994);
    cosines of an encoder are on one scale already. Keywords are one seed.
    """
    sought = read_documents(dataset.seeds, _SEEDS) if dataset.seeds else [" ".join(dataset.words)]
    if dataset.encoder:
        vectors = embed(dataset.encoder, [*sought, *documents])
        return (vectors[len(sought) :] @ vectors[: len(sought)].T).mean(1)
    scores = bm25(documents, [words_of([text]) for text in sought])
    largest = scores.max(axis=1, keepdims=True)
    found = (scores / np.where(largest > 0, largest, 1)).mean(axis=0)
    return np.where(found > 0, found, -np.inf)


def bm25(
    documents: Sequence[str], queries: Sequence[Sequence[str]]
) -> Float[np.ndarray, "queries documents"]:
    """How near each document is to the words of each query, at least 0 (Lucene's BM25; k1=1.5, b=0.75)."""
    try:
        import bm25s
    except ImportError as error:
        raise SaeSweepError('dataset=domain needs a library: pip install "sae-sweep[domain]"') from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each step
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene", backend="numpy")
    index.index(bm25s.tokenize(list(documents), stopwords=None, show_progress=False), show_progress=False)
    nothing = np.zeros(len(documents))
    found = [index.get_scores(list(words)) if words else nothing for words in queries]
    return np.array(found, dtype=np.float32)
