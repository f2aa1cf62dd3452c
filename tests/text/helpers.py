"""A tokenizer that needs no model, and a text that needs no file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_sweep.text.source import Place, TextSource

BOS, EOT = 256, 257


class ByteTokenizer:
    """A tokenizer with one token per byte; counts the characters it has read."""

    bos_id = BOS
    eot_id = EOT
    special_ids = frozenset({BOS, EOT})

    def __init__(self) -> None:
        self.seen = 0

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        self.seen += sum(map(len, texts))
        return [list(text.encode()) for text in texts]


class ListText(TextSource):
    """A text of units in memory; counts the documents that are read."""

    def __init__(
        self, units: list[list[str]], held_out: list[str] | None = None, exhausted: str = "repeat"
    ) -> None:
        super().__init__("a list", exhausted)
        self._units = units
        self._held_out_texts = held_out or []
        self.documents_read = 0

    @staticmethod
    def fingerprint(dataset: Any, cache: Path) -> str:
        raise NotImplementedError("a list in memory has no config")

    @property
    def units(self) -> int:
        return len(self._units)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        for done in range(place or 0, len(self._units[unit])):
            self.documents_read += 1
            yield self._units[unit][done], done + 1

    def held_out(self) -> Iterator[str]:
        return iter(self._held_out_texts)
