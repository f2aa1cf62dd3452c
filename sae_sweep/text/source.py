"""The base class of all text sources: training documents and held-out documents, which never overlap."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Place = Any
"""How far a unit has been read: None at its start, else JSON values that only its source interprets."""


class TextSource(ABC):
    """Documents in units, the pieces that can be read in any order: a document, a row group or a shard.

    Subclasses are constructed from their dataset config and the cache folder, as `open_text` does it.
    """

    def __init__(self, label: str, exhausted: str) -> None:
        self.label = label
        """Name of the text in messages, as the user wrote it."""
        self.exhausted = exhausted
        """What happens when the training documents run out: repeat, stop or error."""

    @staticmethod
    @abstractmethod
    def fingerprint(dataset: Any, cache: Path) -> str:
        """Identify the content of the text that `dataset` names."""

    @property
    @abstractmethod
    def units(self) -> int:
        """Number of units that hold training documents."""

    @abstractmethod
    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        """Yield the training documents of a unit that follow `place`, each with the place after it."""

    @abstractmethod
    def held_out(self) -> Iterator[str]:
        """Yield the held-out documents, always in the same order; none of them is a training document."""


def text_number(text: str) -> int:
    """Hash a text to a number below 2^64; equal texts get equal numbers, so repeats are held out together."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
