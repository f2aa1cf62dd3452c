"""The base class of all text sources: training documents and held-out documents, which never overlap."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

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
        self.summary = ""
        """What there is to read and what is skipped, in one line; empty if that is not known."""
        self._said: set[int] = set()
        """Numbers of times for which `say_repeats` has logged a line."""
        self._long = False
        """Whether `say_long` has logged a line."""

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

    def say_repeats(self, times: int, tokens: int) -> None:
        """Log that a text of so many tokens was read so many times: the first time, and at powers of ten."""
        if times in self._said or str(times).rstrip("0") != "1":
            return
        self._said.add(times)
        read = f"read {times:,} times" if times > 1 else "read once; from here on it repeats"
        log.info("%s: all %s tokens %s", self.label, f"{tokens:,}", read)

    def say_long(self, chars: int) -> None:
        """Warn, once, that a document is so long that a short run reads few of them."""
        if not self._long:
            self._long = True
            log.warning(
                "%s: a document has %s characters, and is read whole: a short run sees few documents; "
                "packing.max_document_tokens=N cuts each",
                *(self.label, f"{chars:,}"),
            )


def text_number(text: str) -> int:
    """Hash a text to a number below 2^64; equal texts get equal numbers, so repeats are held out together."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
