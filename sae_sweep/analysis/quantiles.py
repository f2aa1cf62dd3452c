"""Quantiles of each feature's non-zero activations, over any number of tokens in bounded memory."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

RELATIVE_ERROR = 0.005
"""Largest relative error of a quantile once the values no longer fit: a bin is 1 % wide."""
EXACT_VALUES = 2**25
"""Values that are kept: 270 MB with their features, three times that while they are sorted."""
_SMALLEST, _LARGEST = 1e-6, 1e6
"""What lies beyond counts in the outer bins."""
_LOG_GAMMA = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
_BINS = math.ceil(math.log(_LARGEST / _SMALLEST) / _LOG_GAMMA)
BYTES_PER_FEATURE = 4 * _BINS
"""Bytes of the bins, once values are counted in them."""
_FEATURES_AT_ONCE = 1024


class FeatureQuantiles:
    """Keeps all values while they fit, and then counts them in bins of equal relative width.

    The bins are those of DDSketch (Masson et al. 2019, arXiv 1908.10693): a quantile that they give is within
    `RELATIVE_ERROR` of the exact one. Merging loses nothing more.
    """

    def __init__(self, d_sae: int, exact_values: int = EXACT_VALUES) -> None:
        self._most = exact_values
        self._store: _Values | _Bins = _Values(d_sae)

    @property
    def exact(self) -> bool:
        """Whether all values are still there."""
        return isinstance(self._store, _Values)

    def update(self, features: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Add values above 0, each with its feature."""
        self._store.add(features.cpu().int(), values.cpu().float())
        if isinstance(self._store, _Values) and self._store.count > self._most:
            self._store = self._store.as_bins()

    def merge(self, other: "FeatureQuantiles") -> None:
        """Add what another one has seen."""
        theirs = other._store
        if isinstance(theirs, _Values):
            for features, values in theirs.parts:
                self.update(features, values)
            return
        if isinstance(self._store, _Values):
            self._store = self._store.as_bins()
        self._store.counts += theirs.counts

    def quantiles(self, shares: Sequence[float]) -> Float[Tensor, "shares d_sae"]:
        """Quantiles in float64; NaN for a feature without values."""
        return self._store.quantiles(shares)


class _Values:
    """All values, with their features."""

    def __init__(self, d_sae: int) -> None:
        self._d_sae = d_sae
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.count = 0

    def add(self, features: Tensor, values: Tensor) -> None:
        self.parts.append((features, values))
        self.count += len(values)

    def as_bins(self) -> "_Bins":
        bins = _Bins(self._d_sae)
        for features, values in self.parts:
            bins.add(features, values)
        return bins

    def quantiles(self, shares: Sequence[float]) -> Tensor:
        """Interpolated linearly between neighbours, as in `numpy.quantile`."""
        features, values = self._sorted()
        values = torch.cat([values, torch.tensor([math.nan])])
        counts = torch.bincount(features, minlength=self._d_sae)
        first = counts.cumsum(0) - counts
        last = (counts - 1).clamp(min=0)

        def quantile(share: float) -> Tensor:
            place = share * last.double()
            ends = (first + place.floor().long(), first + place.ceil().long())
            low, high = (values[end.masked_fill(counts == 0, len(values) - 1)] for end in ends)
            return torch.lerp(low.double(), high.double(), place.frac())

        return torch.stack([quantile(share) for share in shares])

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Features and values, by feature and within a feature by value."""
        # one integer per value, sorted in place: the bits of floats above 0 are in the order of their sizes
        keys = np.empty(self.count, np.int64)
        start = 0
        for features, values in self.parts:
            place = slice(start, start + len(values))
            keys[place] = features.long() << 32 | values.view(torch.int32)
            start = place.stop
        keys.sort()
        values = torch.from_numpy(keys.astype(np.int32)).view(torch.float32)
        return torch.from_numpy((keys >> 32).astype(np.int32)), values


class _Bins:
    """Counts of values in bins: 135 MB for 12,288 features."""

    def __init__(self, d_sae: int) -> None:
        self.counts = torch.zeros(d_sae, _BINS, dtype=torch.int32)

    def add(self, features: Tensor, values: Tensor) -> None:
        bins = ((values.double() / _SMALLEST).log() / _LOG_GAMMA).floor().long().clamp(0, _BINS - 1)
        ones = torch.ones(len(bins), dtype=torch.int32)
        self.counts.view(-1).index_add_(0, features.long() * _BINS + bins, ones)

    def quantiles(self, shares: Sequence[float]) -> Tensor:
        """Interpolated as among values, each the middle, in relative terms, of the bin that holds it."""
        exponents = torch.arange(_BINS, dtype=torch.float64)
        middles = _SMALLEST * torch.exp(_LOG_GAMMA * exponents) * (1 + RELATIVE_ERROR)
        parts = []
        for counts in self.counts.split(_FEATURES_AT_ONCE):
            below = counts.cumsum(1)
            total = below[:, -1:].clone()
            ranks = torch.tensor(shares, dtype=torch.float64) * (total - 1).clamp(min=0)
            low, high = (
                middles[torch.searchsorted(below, rank.long(), right=True).clamp(max=_BINS - 1)]
                for rank in (ranks.floor(), ranks.ceil())
            )
            parts.append(torch.lerp(low, high, ranks.frac()).masked_fill(total == 0, math.nan))
        return torch.cat(parts).t()
