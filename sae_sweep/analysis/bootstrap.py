"""Percentile bootstrap over features, seeded and vectorised."""

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
