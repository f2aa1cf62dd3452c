"""Whether the features of an SAE fall into two sets by their activation: a dip test, and a distance."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.embedding import threads_kept
from sae_sweep.config import SaeSweepError

LEAST_FEATURES = 4
"""Live features that the dip test needs."""
_ITERATIONS = 500
_NARROWEST = 0.01
"""Added to the standard deviations of the mixture, relative to that of all values: a few equal values
would otherwise be a component of their own, infinitely far from the rest."""
_ROUNDING = 1e-12
"""Relative size of rounding errors."""


@dataclass(frozen=True)
class Bimodality:
    """How far the values of an SAE's live features, on a log scale, are from having a single mode."""

    dip: float
    """Dip statistic of log10 of the values (Hartigan and Hartigan 1985): largest distance of their
    distribution function from the nearest one with a single mode; NaN if fewer than `LEAST_FEATURES` live."""
    p: float
    """Probability of such a dip or a larger one with a single mode: a small p says that there are several.
    It is interpolated in a table that ends at 0.00001; below that, p is 0."""
    ashman_d: float
    """Distance of the two components of a Gaussian mixture on log10 of the values,
    sqrt(2) |m1 - m2| / sqrt(s1² + s2²); above 2 they are clearly apart (Ashman, Bird and Zepf 1994). It
    says how far, not whether: values of a single mode are split in two as well."""
    n: int
    """Live features."""
    dead: int
    """Features that are left out: they never fire, so that their value is NaN or 0."""


@threads_kept()
def bimodality(values: Float[Tensor, " d_sae"]) -> Bimodality:
    """Test whether log10 of a value per feature, such as its mean activation, has more than one mode.

    Raises:
        SaeSweepError: if a value is negative or infinite, or the extra `figures` is not installed.
    """
    known = values.detach().cpu().double()
    if (known < 0).any() or known.isinf().any():
        raise SaeSweepError("bimodality: a value is negative or infinite; sizes of activations are neither")
    logs = np.sort(known[known > 0].log10().numpy())
    dead = len(known) - len(logs)
    if len(logs) < LEAST_FEATURES:
        return Bimodality(math.nan, math.nan, math.nan, len(logs), dead)
    try:
        dip, p = _dip_test(logs)
        distance = _ashman_d(logs)
    except ModuleNotFoundError as error:
        raise SaeSweepError(
            f"the dip test needs a package that is not installed ({error.name}): "
            "pip install 'sae-sweep[figures]'"
        ) from error
    return Bimodality(dip, p, distance, len(logs), dead)


def _dip_test(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Dip statistic of ascending values, and its p-value."""
    from diptest import diptest

    with warnings.catch_warnings():
        # above 72,000 values it takes the table of 72,000, for sqrt(n) times the dip no longer changes
        warnings.filterwarnings("ignore", message="Sample size exceeds")
        dip, p = diptest(values, sort_x=False)
    return float(dip), float(p)


def _ashman_d(values: Float[np.ndarray, " n"]) -> float:
    """Ashman's D of a mixture of two Gaussians that is fitted to the values; NaN if they are all equal."""
    from sklearn.mixture import GaussianMixture

    if values.std() <= _ROUNDING * np.abs(values).max():
        return math.nan
    scaled = (values - values.mean()) / values.std()
    mixture = GaussianMixture(2, reg_covar=_NARROWEST**2, max_iter=_ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that still moves a little after the last iteration
        mixture.fit(scaled[:, None])
    (low, high), variances = mixture.means_[:, 0], mixture.covariances_
    return float(math.sqrt(2) * abs(low - high) / math.sqrt(variances.sum()))
