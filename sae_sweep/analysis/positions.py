"""Which features follow the position of a token: a test against permuted positions (definitions.md 4.8)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae_sweep.analysis.bootstrap import percentile_interval
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.firing import omega_squared
from sae_sweep.analysis.statistics import divide
from sae_sweep.config import SaeSweepError

LEAST_SHARE = 0.1
"""Share of its variance that position must explain for a feature to be a position feature."""
_ROUNDING = 1e-9
"""A share that is above the null by less than this is equal to it."""
_CELLS = 1 << 17
"""Features x positions that are summed at once: 1 MiB, so that they stay in the processor's cache."""
_NONZEROS = 1 << 21
"""Non-zeros that are summed at once: about 100 MiB with their places."""
_ELEMENTS = 1 << 22
"""Features x positions x resamples that are held at once: 32 MiB."""
_TOKENS = 1 << 25
"""Tokens x permutations that are held at once: 128 MiB."""
_RESAMPLES = 64
"""Resamples that are computed at once."""


@dataclass(frozen=True)
class PositionTest:
    """How much of each feature's variance position explains, and in which features that is no chance."""

    position_share: Float[Tensor, " d_sae"]
    """omega² over tokens at positions 1 to T-1, zeros included; NaN for dead features."""
    null_maximum: Float[Tensor, " d_sae"]
    """Its largest value when positions are permuted within each sequence; NaN for dead features."""
    live: Bool[Tensor, " d_sae"]
    """Features that fire at these positions."""
    passes: Bool[Tensor, " d_sae"]
    """Position features: those whose share is above the null's maximum and above `LEAST_SHARE`."""
    share: float
    """Share of position features among the live ones; NaN if none is live."""
    low: float
    """Lower end of the 95 % bootstrap interval of `share`, over sequences. The null is not drawn anew."""
    high: float
    tokens: int
    """Tokens that the test is made of."""
    sequences: int


def position_test(
    codes: Codes,
    positions: int,
    *,
    permutations: int = 100,
    resamples: int = 100,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
) -> PositionTest:
    """Test every feature for a dependence on position, from the sparse codes of the tokens that count.

    The null permutes the positions of the tokens of each sequence, independently in each. So a feature that
    prefers some sequences, or fires at random, stays as it is; only the order within sequences is lost.

    Args:
        codes: codes of tokens; those at position 0 are left out.
        positions: length T of the sequences.
        permutations: number of permutations that make the null.
        resamples: number of resamples, of whole sequences with replacement, that make the interval.
        seed: of permutations and resamples.
        between: called now and then, to obey a stop.

    Raises:
        SaeSweepError: if there are fewer than two sequences with tokens after position 0.
    """
    _check(codes, positions, permutations, resamples)
    by_feature = _ByFeature.of(codes, positions)
    observed = by_feature.shares([by_feature.positions], between)
    shuffles, draws = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(2))
    null = torch.full_like(observed, -torch.inf)
    at_once = max(1, _TOKENS // len(by_feature.positions))
    for start in range(0, permutations, at_once):
        permuted = [by_feature.permuted(shuffles) for _ in range(min(at_once, permutations - start))]
        null = torch.maximum(null, by_feature.shares(permuted, between))
    least = (null + _ROUNDING).clamp(min=LEAST_SHARE)
    live = torch.from_numpy(np.diff(by_feature.starts) > 0)
    counts = _resampled_counts(by_feature, least, resamples, draws, between)
    n_live, passes = int(live.sum()), observed > least
    low, high = percentile_interval(counts.double() / n_live)
    return PositionTest(
        position_share=observed,
        null_maximum=null,
        live=live,
        passes=passes,
        share=divide(int(passes.sum()), n_live),
        low=low,
        high=high,
        tokens=len(by_feature.positions),
        sequences=by_feature.n_sequences,
    )


def _check(codes: Codes, positions: int, permutations: int, resamples: int) -> None:
    for name, number in (("permutations", permutations), ("resamples", resamples)):
        if number < 1:
            raise SaeSweepError(f"position test: {name}={number} must be at least 1")
    if len(codes.positions) and codes.positions.max() >= positions:
        raise SaeSweepError(
            f"position test: positions={positions}, and a token stands at {int(codes.positions.max())}"
        )
    sequences = len(codes.sequences[codes.positions > 0].unique())
    if sequences < 2:
        raise SaeSweepError(
            "position test: it needs 2 sequences with tokens after position 0 that count, and there "
            f"{'is' if sequences == 1 else 'are'} {sequences}: give more text"
        )


class _Block(NamedTuple):
    """Non-zeros of some consecutive features."""

    features: slice
    cells: Int[np.ndarray, " nnz"]
    """Place of each feature's first position in a table of features x positions."""
    tokens: Int[np.ndarray, " nnz"]
    values: Float[np.ndarray, " nnz"]
    """In float64."""


class _ByFeature(NamedTuple):
    """Codes of the tokens after position 0, the non-zeros in the order of features."""

    starts: Int[np.ndarray, " d_sae_plus_1"]
    """Index of each feature's first non-zero, and at the end the number of all."""
    tokens: Int[np.ndarray, " nnz"]
    values: Float[np.ndarray, " nnz"]
    positions: Int[np.ndarray, " tokens"]
    """Position of each token, less 1."""
    sequences: Int[np.ndarray, " tokens"]
    """Number of each token's sequence, from 0; ascending."""
    n_positions: int
    n_sequences: int

    @classmethod
    def of(cls, codes: Codes, positions: int) -> "_ByFeature":
        from scipy.sparse import csr_array

        shape = (len(codes.positions), codes.d_sae)
        rows = csr_array((codes.values.numpy(), codes.features.numpy(), codes.offsets.numpy()), shape)
        counted = np.flatnonzero(codes.positions.numpy() > 0)
        counted = counted[np.argsort(codes.sequences.numpy()[counted], kind="stable")]
        found, sequences = np.unique(codes.sequences.numpy()[counted], return_inverse=True)
        columns = rows[counted].tocsc()
        return cls(
            starts=columns.indptr,
            tokens=columns.indices,
            values=columns.data,
            positions=codes.positions.numpy()[counted].astype(np.int32) - 1,
            sequences=sequences,
            n_positions=positions - 1,
            n_sequences=len(found),
        )

    def blocks(self, width: int) -> Iterator[_Block]:
        """All features in blocks, at most `width` and, unless one alone has more, `_NONZEROS` in each."""
        first, d_sae = 0, len(self.starts) - 1
        while first < d_sae:
            within = int(np.searchsorted(self.starts, self.starts[first] + _NONZEROS, side="right")) - 1
            last = min(max(within, first + 1), first + width, d_sae)
            starts = self.starts[first : last + 1]
            part = slice(starts[0], starts[-1])
            cells = np.repeat(np.arange(last - first) * self.n_positions, np.diff(starts))
            yield _Block(slice(first, last), cells, self.tokens[part], self.values[part].astype(np.float64))
            first = last

    def permuted(self, generator: np.random.Generator) -> Int[np.ndarray, " tokens"]:
        """Positions of the tokens, permuted within each sequence."""
        # half a number, so that no rounding moves a token into the next sequence
        return self.positions[np.argsort(self.sequences + generator.random(len(self.sequences)) / 2)]

    def shares(
        self, placements: Sequence[Int[np.ndarray, " tokens"]], between: Callable[[], None]
    ) -> Float[Tensor, " d_sae"]:
        """Largest omega² of each feature over several placements of the tokens at positions."""
        counts = torch.from_numpy(np.bincount(self.positions, minlength=self.n_positions)).double()[:, None]
        largest = torch.full((len(self.starts) - 1,), -torch.inf, dtype=torch.float64)
        for block in self.blocks(max(1, _CELLS // self.n_positions)):
            between()
            ours = largest[block.features]  # a view
            squares = _table(block.cells, block.values**2, len(ours), self.n_positions)[0]
            for positions in placements:
                cells = block.cells + positions[block.tokens]
                sums = _table(cells, block.values, len(ours), self.n_positions)
                torch.maximum(ours, omega_squared(counts, sums, squares), out=ours)
        return largest


def _table(
    cells: Int[np.ndarray, " nnz"], values: Float[np.ndarray, " nnz"], features: int, positions: int
) -> Float[Tensor, "positions features"]:
    """Sum of the values of each cell of a table of features x positions."""
    sums = np.bincount(cells, values, features * positions)
    return torch.from_numpy(sums).double().view(features, positions).T  # whole numbers if there are no values


def _resampled_counts(
    by_feature: _ByFeature,
    least: Float[Tensor, " d_sae"],
    resamples: int,
    generator: np.random.Generator,
    between: Callable[[], None],
) -> Int[Tensor, " resamples"]:
    """How many features have an omega² above their `least` in each resample of the sequences."""
    n, chances = by_feature.n_sequences, np.full(by_feature.n_sequences, 1 / by_feature.n_sequences)
    counts = []
    for start in range(0, resamples, _RESAMPLES):
        drawn = generator.multinomial(n, chances, min(_RESAMPLES, resamples - start))
        weights = np.ascontiguousarray(drawn.T, dtype=np.float64)
        width = max(1, _ELEMENTS // (by_feature.n_positions * weights.shape[1]))
        counted = torch.zeros(weights.shape[1], dtype=torch.int64)
        tokens = _weighted(by_feature.positions, by_feature.sequences, None, weights, by_feature.n_positions)
        for block in by_feature.blocks(width):
            between()
            counted += (
                _resampled_shares(by_feature, block, tokens, weights) > least[block.features, None]
            ).sum(0)
        counts.append(counted)
    return torch.cat(counts)


def _resampled_shares(
    by_feature: _ByFeature, block: _Block, counts: Float[Tensor, "positions resamples"], weights: np.ndarray
) -> Float[Tensor, "features resamples"]:
    positions, features = by_feature.n_positions, block.features.stop - block.features.start
    sequences, cells = by_feature.sequences[block.tokens], block.cells + by_feature.positions[block.tokens]
    sums = _weighted(cells, sequences, block.values, weights, features * positions)
    squares = _weighted(block.cells // positions, sequences, block.values**2, weights, features)
    return omega_squared(
        counts[:, None], sums.view(features, positions, -1).transpose(0, 1), squares, draws=2
    )


def _weighted(
    rows: Int[np.ndarray, " n"],
    sequences: Int[np.ndarray, " n"],
    values: Shaped[np.ndarray, " n"] | None,
    weights: Float[np.ndarray, "sequences resamples"],
    size: int,
) -> Float[Tensor, "size resamples"]:
    """Sum values (1 each, if None) by row, each as often as its sequence was drawn."""
    from scipy.sparse import coo_array

    values = np.ones(len(rows)) if values is None else values
    return torch.from_numpy(coo_array((values, (rows, sequences)), (size, len(weights))).tocsr() @ weights)
