"""The sparse codes of the first tokens of a text, kept for what needs several passes over them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.firing import Activations

MOST = 2**25
"""Non-zero activations that are kept: 400 MB with their features and places."""


class Codes:
    """Sparse codes in compressed rows (CSR), a row per token: whole tokens, until `most` non-zeros are held.

    They are the same however the text is cut into batches, or into parts that are merged in order.
    """

    def __init__(self, d_sae: int, most: int = MOST) -> None:
        self.d_sae = d_sae
        self.complete = True
        """Whether all of the text is held."""
        self._most = most
        self._held = 0
        self._parts: list[tuple[Tensor, ...]] = []

    def update(
        self, found: Activations, positions: Int[Tensor, " tokens"], sequences: Int[Tensor, " tokens"]
    ) -> None:
        """Add a batch of the tokens that count.

        Args:
            found: their non-zero activations; rows count these tokens.
            positions: each token's position in its sequence.
            sequences: number of each token's sequence in the whole text.
        """
        self._add(
            torch.bincount(found.rows, minlength=len(positions)).cpu(),
            *(found.features.int().cpu(), found.values.float().cpu()),
            *(positions.int().cpu(), sequences.long().cpu()),
        )

    def merge(self, other: "Codes") -> None:
        """Append a part of the text that comes later."""
        self._add(*other._joined())
        self.complete &= other.complete

    def _add(
        self, counts: Tensor, features: Tensor, values: Tensor, positions: Tensor, sequences: Tensor
    ) -> None:
        if not self.complete:
            return
        ends = counts.cumsum(0)
        tokens = int((ends <= self._most - self._held).sum())
        active = int(ends[tokens - 1]) if tokens else 0
        self.complete = tokens == len(counts)
        self._held += active
        rows, entries = slice(tokens), slice(active)
        self._parts.append(
            (counts[rows], features[entries], values[entries], positions[rows], sequences[rows])
        )

    def _joined(self) -> tuple[Tensor, ...]:
        """Counts, features, values, positions and sequences, as one tensor each."""
        if len(self._parts) != 1:
            dtypes = (torch.int64, torch.int32, torch.float32, torch.int32, torch.int64)
            empty = tuple(torch.zeros(0, dtype=dtype) for dtype in dtypes)
            self._parts = [tuple(map(torch.cat, zip(empty, *self._parts, strict=True)))]
        return self._parts[0]

    @property
    def offsets(self) -> Int[Tensor, " tokens_plus_1"]:
        """Index of each token's first non-zero, and at the end the number of all."""
        return torch.nn.functional.pad(self._joined()[0].cumsum(0), (1, 0))

    @property
    def features(self) -> Int[Tensor, " nnz"]:
        return self._joined()[1]

    @property
    def values(self) -> Float[Tensor, " nnz"]:
        return self._joined()[2]

    @property
    def positions(self) -> Int[Tensor, " tokens"]:
        """Each token's position in its sequence."""
        return self._joined()[3]

    @property
    def sequences(self) -> Int[Tensor, " tokens"]:
        """Number of each token's sequence in the whole text."""
        return self._joined()[4]
