"""Which features of two SAEs fire together on the same text, from their sparse codes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.codes import Codes
from sae_sweep.config import SaeSweepError

_PAIRS_AT_ONCE = 2**22
"""Pairs of features in a block: 200 MB with their sums and counts."""


class Best(NamedTuple):
    """The best partner of each feature in the other SAE; -1 and NaN where none has a value above 0."""

    index_a: Int[Tensor, " n_a"]
    """Feature of b."""
    values_a: Float[Tensor, " n_a"]
    index_b: Int[Tensor, " n_b"]
    values_b: Float[Tensor, " n_b"]


class Correlation(NamedTuple):
    """How the activations of two SAEs' features go together over tokens."""

    pearson: Best
    """By the correlation of activations, zeros included."""
    jaccard: Best
    """By the tokens on which both fire, as a share of those on which either does."""
    pairs_pearson: Float[Tensor, " pairs"]
    """Correlation of each pair that was asked for; below 0 where one fires when the other does not."""
    pairs_jaccard: Float[Tensor, " pairs"]
    tokens: int


def correlate(
    a: Codes,
    b: Codes,
    pairs: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]] | None = None,
    *,
    between: Callable[[], None] = lambda: None,
) -> Correlation:
    """Correlate all features of two SAEs over the same tokens, in blocks.

    Args:
        a: sparse codes of a text, or of its first part.
        b: those of the other SAE over the same text; the tokens that both hold are counted.
        pairs: features of a and b whose values are wanted, such as the neighbours by decoder cosine.
        between: called between blocks, to obey a stop.

    Of equal partners the one of the lower number is taken.

    Raises:
        SaeSweepError: if the codes are of different tokens.
    """
    tokens = min(len(a.positions), len(b.positions))
    for name in ("positions", "sequences"):
        if not torch.equal(getattr(a, name)[:tokens], getattr(b, name)[:tokens]):
            raise SaeSweepError("correlation: the codes of the two SAEs are of different tokens")
    ours, theirs = _Sparse.of(a, tokens), _Sparse.of(b, tokens)
    none = (torch.zeros(0, dtype=torch.int64),) * 2
    places = [part.numpy() for part in pairs or none]
    found = [_Running(a.d_sae, b.d_sae, places) for _ in range(2)]
    size = max(1, _PAIRS_AT_ONCE // b.d_sae)
    for start in range(0, a.d_sae, size):
        between()
        for running, values in zip(found, _block(ours, theirs, start, size), strict=True):
            running.add(start, values)
    pearson, jaccard = (running.best() for running in found)
    return Correlation(pearson, jaccard, found[0].of_pairs(), found[1].of_pairs(), tokens)


class _Sparse(NamedTuple):
    """Codes as matrices [tokens, d_sae], and sums over tokens by feature."""

    values: object
    fires: object
    mean: np.ndarray
    deviation: np.ndarray
    counts: np.ndarray
    tokens: int

    @classmethod
    def of(cls, codes: Codes, tokens: int) -> "_Sparse":
        from scipy.sparse import csr_array

        offsets = codes.offsets[: tokens + 1].numpy()
        end = int(offsets[-1]) if len(offsets) else 0
        values, features = codes.values[:end].double().numpy(), codes.features[:end].numpy()
        shape = (tokens, codes.d_sae)
        mean = np.bincount(features, values, minlength=codes.d_sae) / max(tokens, 1)
        square = np.bincount(features, values**2, minlength=codes.d_sae) / max(tokens, 1)
        return cls(
            csr_array((values, features, offsets), shape=shape),
            csr_array((np.ones(end, np.int32), features, offsets), shape=shape),
            mean,
            np.sqrt(np.maximum(square - mean**2, 0)),
            np.bincount(features, minlength=codes.d_sae),
            tokens,
        )


def _block(a: _Sparse, b: _Sparse, start: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pearson and Jaccard of a block of a's features with all of b's; 0 for a feature that is constant."""
    rows = slice(start, start + size)
    products = (a.values[:, rows].T @ b.values).toarray() / max(a.tokens, 1)  # type: ignore[index]
    joint = (a.fires[:, rows].T @ b.fires).toarray()  # type: ignore[index]
    spread = a.deviation[rows, None] * b.deviation
    covariance = products - a.mean[rows, None] * b.mean
    pearson = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    either = a.counts[rows, None] + b.counts - joint
    return pearson, joint / np.maximum(either, 1)


class _Running:
    """Best values by row and by column, block by block."""

    def __init__(self, n_a: int, n_b: int, pairs: list[np.ndarray]) -> None:
        self._a = np.zeros(n_a), np.full(n_a, -1)
        self._b = np.zeros(n_b), np.full(n_b, -1)
        self._pairs, self._values = pairs, np.zeros(len(pairs[0]))

    def add(self, start: int, values: np.ndarray) -> None:
        rows = slice(start, start + len(values))
        best = values.argmax(1)
        top = values[np.arange(len(values)), best]
        self._a[0][rows], self._a[1][rows] = np.maximum(top, 0), np.where(top > 0, best, -1)
        best, top = values.argmax(0) + start, values.max(0)
        higher = top > self._b[0]
        self._b[0][higher], self._b[1][higher] = top[higher], best[higher]
        here = (self._pairs[0] >= start) & (self._pairs[0] < start + len(values))
        self._values[here] = values[self._pairs[0][here] - start, self._pairs[1][here]]

    def best(self) -> Best:
        parts = []
        for values, index in (self._a, self._b):
            parts += [torch.from_numpy(index), torch.from_numpy(np.where(index < 0, np.nan, values)).float()]
        return Best(*parts)

    def of_pairs(self) -> Float[Tensor, " pairs"]:
        return torch.from_numpy(self._values).float()
