"""Text for synthetic activations: random words, of which all that matters is that each place is its own."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sae_sweep.config import SyntheticDataset, digest
from sae_sweep.text.source import Place, TextSource

WORDS = 1023
"""Words, the numbers from 1 on; 0 is the special token."""
_DOCUMENTS = 2**20
_HELD_OUT = 2**14
_LENGTH = 512
"""Words of a document."""


class SyntheticText(TextSource):
    """Documents of random words, 2^20 to train on and 2^14 held out; nothing is on disk."""

    def __init__(self, dataset: SyntheticDataset, _cache: Path) -> None:
        super().__init__(f"dataset={dataset.name}", dataset.exhausted)
        self._seeds = (dataset.world, dataset.variant)

    @staticmethod
    def fingerprint(dataset: SyntheticDataset, _cache: Path) -> str:
        """Identify it by all of its keys but the label."""
        known = dataclasses.asdict(dataset)
        return "synthetic-" + digest({key: known[key] for key in known if key not in ("name", "exhausted")})

    @property
    def units(self) -> int:
        return _DOCUMENTS

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        if place is None:
            yield self._document(unit), 1

    def held_out(self) -> Iterator[str]:
        return (self._document(_DOCUMENTS + number) for number in range(_HELD_OUT))

    def _document(self, number: int) -> str:
        rng = np.random.default_rng((*self._seeds, number))
        return " ".join(map(str, rng.integers(1, WORDS + 1, _LENGTH).tolist()))
