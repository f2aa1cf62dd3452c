"""Domains: the documents of a text that are nearest to some keywords, by BM25."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from sae_sweep.config import DomainDataset, SaeSweepError
from sae_sweep.config.checks import shown
from sae_sweep.text.source import Place, TextSource

SELECTION = "bm25-1"
"""Part of the fingerprint; increase the number whenever the same keywords select other documents."""


class DomainText(TextSource):
    """The selected documents, in the order of their text; one document per unit.

    Held-out documents of the text are held out here, too, if they are as near to the keywords as the last of
    the selected training documents.
    """

    def __init__(self, dataset: DomainDataset, source: TextSource) -> None:
        """Read the whole text, and select.

        Raises:
            SaeSweepError: if no document has any of the keywords, no held-out document is near enough, or the
                library of BM25 is not installed.
        """
        super().__init__(f"dataset={dataset.name}", dataset.exhausted)
        train = [text for unit in range(source.units) for text, _ in source.read(unit)]
        held_out = list(source.held_out())
        scores = bm25([*train, *held_out], dataset.words)
        of_train, of_held_out = scores[: len(train)], scores[len(train) :]
        best = np.argsort(-of_train, kind="stable")[: dataset.documents]
        best = np.sort(best[of_train[best] > 0])
        where = f"dataset.keywords={shown(dataset.keywords)}"
        if not len(best):
            raise SaeSweepError(f"{where}: none of the {len(train):,} documents of {source.label} has one")
        self._train = [train[place] for place in best]
        near = np.flatnonzero(of_held_out >= of_train[best].min())
        if not len(near):
            raise SaeSweepError(
                f"{where}: no held-out document of {source.label} is as near to them as the {len(best):,} "
                "selected ones: raise dataset.documents, or take other keywords"
            )
        self._held_out = [held_out[place] for place in near]
        self.summary = (
            f"{self.label}: {len(best):,} of {len(train):,} training documents and {len(near):,} of "
            f"{len(held_out):,} held-out ones of {source.label}"
        )

    @property
    def units(self) -> int:
        return len(self._train)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        if place is None:
            yield self._train[unit], 1

    def held_out(self) -> Iterator[str]:
        return iter(self._held_out)


def bm25(documents: Sequence[str], words: Sequence[str]) -> Float[np.ndarray, " documents"]:
    """How near each document is to some words, at least 0 (Lucene's BM25; k1=1.5, b=0.75)."""
    try:
        import bm25s
    except ImportError as error:
        raise SaeSweepError('dataset=domain needs a library: pip install "sae-sweep[domain]"') from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each step
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene", backend="numpy")
    index.index(bm25s.tokenize(list(documents), stopwords=None, show_progress=False), show_progress=False)
    return np.asarray(index.get_scores(list(words)), dtype=np.float32)
