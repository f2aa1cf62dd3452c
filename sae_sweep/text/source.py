"""Where text comes from: documents in two disjoint splits, each reachable without reading those before it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_sweep.config import DatasetConfig, EmbeddedDataset, FilesDataset, HubDataset, SaeSweepError

Place = Any
"""How far a unit has been read: None for not at all, else plain JSON values that its source understands."""


class TextSource(ABC):
    """Documents in units, the pieces that can be read in any order: a document, a row group or a shard."""

    def __init__(self, label: str, exhausted: str) -> None:
        self.label = label
        """For messages: what the user called this text."""
        self.exhausted = exhausted
        """repeat, stop or error: what happens when the training documents run out."""

    @property
    @abstractmethod
    def units(self) -> int:
        """Number of units that hold training documents."""

    @abstractmethod
    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        """Yield the training documents of a unit after `place`, each with the place just behind it."""

    @abstractmethod
    def held_out(self) -> Iterator[str]:
        """Yield the held-out documents, always in the same order; none of them is ever trained on."""


def text_number(text: str) -> int:
    """A number below 2^64 that a text has wherever it stands: what holds it out must hold out its repeats."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class EmbeddedText(TextSource):
    """A corpus that every installation has; one unit a document."""

    def __init__(self, dataset: EmbeddedDataset, cache: Path) -> None:
        from sae_sweep.text.embedded import embedded_corpus

        super().__init__(dataset.name, dataset.exhausted)
        self._corpus = embedded_corpus(dataset.name, cache)

    @property
    def units(self) -> int:
        return len(self._corpus.train)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        if place is None:
            yield self._corpus.train[unit], 1

    def held_out(self) -> Iterator[str]:
        return iter(self._corpus.held_out)


def open_text(dataset: DatasetConfig, cache: Path) -> TextSource:
    """Open the text that a config asks for.

    Args:
        dataset: one of the dataset configs.
        cache: folder in which the embedded corpora are built.

    Raises:
        SaeSweepError: if the text is missing, empty or unreadable, or the hub cannot be reached.
    """
    match dataset:
        case EmbeddedDataset():
            return EmbeddedText(dataset, cache)
        case FilesDataset():
            from sae_sweep.text.files import LocalFiles

            return LocalFiles(dataset)
        case HubDataset():
            from sae_sweep.text.hub import HubParquet

            return HubParquet(dataset)
    raise _unknown(dataset)


def fingerprint(dataset: DatasetConfig, cache: Path) -> str:
    """Name the text itself: another fingerprint is another text.

    The embedded corpora and local files are hashed; a hub dataset is named by repository, revision and files,
    without a look at the network.
    """
    match dataset:
        case EmbeddedDataset():
            from sae_sweep.text.embedded import embedded_corpus

            return embedded_corpus(dataset.name, cache).fingerprint
        case FilesDataset():
            from sae_sweep.text.files import files_digest

            return files_digest(dataset.path)
        case HubDataset():
            return f"{dataset.path}@{dataset.revision}:{dataset.files}"
    raise _unknown(dataset)


def _unknown(dataset: DatasetConfig) -> SaeSweepError:
    return SaeSweepError(f"dataset={dataset.name}: a {type(dataset).__name__} is no text that can be read")
