"""Percentile bootstrap over features and over seeds, seeded and vectorised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import SaeSweepError

RESAMPLES = 1000
_CHUNK_ELEMENTS = 1 << 22


def bootstrap_means(
    values: Float[Tensor, "n columns"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Float[Tensor, "resamples columns"]:
    """Means of every column over features drawn with replacement; one draw serves all columns.

    Columns are several measurements of the same features. They share the draws and so stay correlated:
    averages and differences of columns have the right spread.
    """
    n = len(values)
    if n == 0:
        raise SaeSweepError("bootstrap: there are no features to draw from")
    generator = torch.Generator().manual_seed(seed)
    size = max(1, _CHUNK_ELEMENTS // n)
    means = [
        _draws(n, min(size, resamples - start), generator) @ values.cpu().float() / n
        for start in range(0, resamples, size)
    ]
    return torch.cat(means)


def _draws(n: int, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
    """Counts of each feature among n draws with replacement, one row per resample."""
    chosen = torch.randint(n, (rows, n), generator=generator)
    return torch.zeros(rows, n).scatter_add_(1, chosen, torch.ones(1).expand(rows, n))


def bootstrap_interval(
    values: Float[Tensor, " n"], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, one value per feature.

    It covers the choice of features, not what another training run of the same SAE would give. If all
    values are equal, its width is 0.
    """
    return percentile_interval(bootstrap_means(values[:, None], seed=seed, resamples=resamples)[:, 0])


def percentile_interval(resampled: Float[Tensor, " resamples"]) -> tuple[float, float]:
    """2.5th and 97.5th percentile."""
    low, high = torch.quantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval; NaN where there is nothing to draw from."""

    value: float
    low: float
    high: float
    n: int
    """Features, or seeds, that were drawn from."""


class Sample(NamedTuple):
    """Means of one or more values per feature, and the same means over features drawn with replacement."""

    mean: Float[Tensor, " columns"]
    draws: Float[Tensor, "resamples columns"]
    n: int
    """Features."""

    @classmethod
    def of(cls, values: Float[Tensor, "n columns"], seed: int) -> "Sample":
        """Samples of equal `seed` and number of features draw the same features."""
        if not len(values):
            return cls.nothing(values.shape[1])
        return cls(values.double().mean(0), bootstrap_means(values, seed=seed).double(), len(values))

    @classmethod
    def nothing(cls, columns: int = 1) -> "Sample":
        """The sample of no features: NaN."""
        return cls(torch.full((columns,), math.nan).double(), torch.full((1, columns), math.nan).double(), 0)

    def __add__(self, other: "Sample") -> "Sample":  # type: ignore[override]
        """The sums of both, such as of the two directions of a pair."""
        return Sample(self.mean + other.mean, self.draws + other.draws, self.n + other.n)

    def divided(self, count: int) -> "Sample":
        """The mean of so many that were added."""
        return Sample(self.mean / count, self.draws / count, self.n)

    def __sub__(self, other: "Sample") -> "Sample":
        if not (self.n and other.n):
            return Sample.nothing(len(self.mean))
        return Sample(self.mean - other.mean, self.draws - other.draws, min(self.n, other.n))

    def estimate(self, column: int = 0) -> Estimate:
        return Estimate(self.mean[column].item(), *percentile_interval(self.draws[:, column]), self.n)


def estimate(values: Float[Tensor, " n"], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of one value per feature, with its interval over features."""
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = bootstrap_interval(values, seed=seed, resamples=resamples)
    return Estimate(values.double().mean().item(), low, high, len(values))


def estimate_difference(
    values: Float[Tensor, " n"],
    others: Float[Tensor, " m"],
    *,
    paired: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of `values` minus mean of `others`, with its interval over features.

    Args:
        values: one value per feature.
        others: one value per feature of the other set.
        paired: whether both are measurements of the same features, such as a match and its null.
        seed: of the draws.
        resamples: number of draws.

    Raises:
        SaeSweepError: for paired values of different numbers.
    """
    if paired:
        if len(values) != len(others):
            raise SaeSweepError(f"bootstrap: {len(values)} and {len(others)} values cannot be paired")
        return estimate(values.float() - others.float(), seed=seed, resamples=resamples)
    n = min(len(values), len(others))
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    first, second = (
        bootstrap_means(some[:, None], seed=seed + i, resamples=resamples)[:, 0]
        for i, some in enumerate((values, others))
    )
    difference = values.double().mean().item() - others.double().mean().item()
    return Estimate(difference, *percentile_interval(first - second), n)


def estimate_over_seeds(
    pairs: Sequence[tuple[str, str]], values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean over pairs of SAEs, with its interval over their seeds.

    Args:
        pairs: the seeds of the two SAEs of each pair.
        values: a value per pair.
        seed: of the draws.
        resamples: number of draws.

    Seeds are drawn with replacement. A pair of one seed counts as often as it was drawn, a pair of two as
    often as both were drawn together. With fewer than three seeds there is no interval (NaN).
    """
    if not pairs:
        return Estimate(math.nan, math.nan, math.nan, 0)
    seeds = sorted({one for pair in pairs for one in pair})
    known = torch.tensor(values, dtype=torch.float64)
    mean = known.mean().item()
    if len(seeds) < 3:
        return Estimate(mean, math.nan, math.nan, len(seeds))
    places = torch.tensor([[seeds.index(a), seeds.index(b)] for a, b in pairs])
    drawn = _draws(len(seeds), resamples, torch.Generator().manual_seed(seed)).double()
    first, second = drawn[:, places[:, 0]], drawn[:, places[:, 1]]
    weights = torch.where(places[:, 0] == places[:, 1], first, first * second)
    means = (weights @ known) / weights.sum(1)
    return Estimate(mean, *percentile_interval(means[~means.isnan()]), len(seeds))
