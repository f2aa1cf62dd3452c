"""Means of measures over the pairs of SAEs that differ in one key alone, and over both directions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import Estimate, Sample, estimate_over_seeds
from sae_sweep.analysis.measures import MEASURES, Measure, estimate_measures
from sae_sweep.analysis.neighbours import THRESHOLDS, Curve

CURVE, RATES = "curve", "rates"
"""In the place of a measure: the ratio at each of `THRESHOLDS`; and by density, the share of features in each
bin, then of those with a mutual match."""
DENSITY_EDGES = tuple(-6 + step / 2 for step in range(13))
"""Edges of the bins of log10 density."""
Nulls = Mapping[str, Mapping[str, Sample]]
"""Samples of each measure by null."""


@dataclass(frozen=True)
class KeyMeasure:
    """A measure averaged over the pairs that differ in one key alone, and over both directions."""

    key: str
    """Empty: the one pair that was compared."""
    pairs: int
    """Pairs that differ in the key alone."""
    undertrained: int
    """Those with an undertrained SAE; they do not count unless all are."""
    features: str
    chance: str
    measure: Measure
    over_seeds: Estimate
    """The value with its interval over seeds; NaN where the pairs have fewer than three."""


@dataclass(frozen=True)
class KeyCurve:
    """Share of features with a match against the threshold, averaged as in `KeyMeasure`."""

    key: str
    features: str
    found: Curve
    nulls: Mapping[str, Curve]


@dataclass(frozen=True)
class KeyRates:
    """Probability that a feature has a mutual match, against how often it fires; averaged over the pairs."""

    key: str
    features: Float[Tensor, " bins"]
    """Share of the features whose log10 density is between two `DENSITY_EDGES`."""
    matched: Float[Tensor, " bins"]
    """Share of those that have a match; NaN where there are none."""
    low: Float[Tensor, " bins"]
    high: Float[Tensor, " bins"]


class Direction(NamedTuple):
    """What one direction of a pair gave."""

    found: Mapping[str, Sample]
    nulls: Nulls


class KeyMean:
    """Running mean over the pairs that differ in one key, and over both directions.

    Only sums are held. Pairs with an undertrained SAE are kept apart, and count only if there are no others.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.undertrained = 0
        self._sums: dict[bool, dict[tuple[str, str], Sample]] = {False: {}, True: {}}
        self._counts: dict[bool, Counter[tuple[str, str]]] = {False: Counter(), True: Counter()}
        self._by_seeds: dict[bool, list[tuple[tuple[str, str], dict[str, float]]]] = {False: [], True: []}

    def add(
        self, directions: Sequence[Direction], *, undertrained: bool, seeds: tuple[str, str] | None = None
    ) -> None:
        """Add a pair, with the seeds of its SAEs if they are known."""
        self.pairs += 1
        self.undertrained += undertrained
        sums, counts = self._sums[undertrained], self._counts[undertrained]
        if seeds is not None:
            means = {
                name: sum(one.found[name].mean[0].item() for one in directions) / len(directions)
                for name in MEASURES
                if name in directions[0].found
            }
            self._by_seeds[undertrained].append((seeds, means))
        for (chance, name), sample in _of_pair(directions).items():
            known = sums.get((chance, name))
            sums[chance, name] = sample if known is None else known + sample
            counts[chance, name] += 1

    @property
    def mean(self) -> Direction:
        bad = self.undertrained == self.pairs
        found: dict[str, dict[str, Sample]] = {"": {}}
        for (chance, name), total in self._sums[bad].items():
            found.setdefault(chance, {})[name] = total.divided(self._counts[bad][chance, name])
        return Direction(found.pop(""), found)

    def over_seeds(self, measure: str) -> Estimate:
        """A measure with its interval over seeds."""
        pairs = self._by_seeds[self.undertrained == self.pairs]
        return estimate_over_seeds([seeds for seeds, _ in pairs], [means[measure] for _, means in pairs])


def _of_pair(directions: Sequence[Direction]) -> dict[tuple[str, str], Sample]:
    """The mean of both directions, by null and measure, with the spread of the wider one.

    The two directions hold the same matches. Taken as independent draws, their mean would vary too little.
    """
    found: dict[tuple[str, str], list[Sample]] = {}
    for one in directions:
        for chance, samples in {"": one.found, **one.nulls}.items():
            for name, sample in samples.items():
                if sample.n:
                    found.setdefault((chance, name), []).append(sample)
    return {key: _with_widest(samples) for key, samples in found.items()}


def _with_widest(samples: Sequence[Sample]) -> Sample:
    """The mean of samples whose features correspond, drawn as the one that varies most."""
    mean = torch.stack([one.mean for one in samples]).mean(0)
    widest = max(samples, key=lambda one: one.draws.std(0).nan_to_num().sum().item())
    return Sample(mean, mean + (widest.draws - widest.mean), min(one.n for one in samples))


def rows_of_key(key: str, features: str, found: KeyMean) -> list[KeyMeasure]:
    """The measures of a key, each beside each null."""
    mean = found.mean
    return [
        KeyMeasure(
            *(key, found.pairs, found.undertrained, features, chance, measure),
            found.over_seeds(measure.measure),
        )
        for chance, null in (mean.nulls or {"": {}}).items()
        for measure in estimate_measures(mean.found, null, "both")
    ]


def key_rates(key: str, mean: Direction) -> KeyRates:
    sample, count = mean.found[RATES], len(DENSITY_EDGES) - 1
    there, matched = sample.draws.split(count, 1)
    low, high = torch.nanquantile(matched / there, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    features = sample.mean[:count]
    return KeyRates(key, features, sample.mean[count:] / features, low, high)


def _curve(sample: Sample) -> Curve:
    low, high = torch.quantile(sample.draws, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Curve(torch.tensor(THRESHOLDS), sample.mean, low, high)


def key_curve(key: str, features: str, mean: Direction) -> KeyCurve:
    nulls = {name: _curve(null[CURVE]) for name, null in mean.nulls.items()}
    return KeyCurve(key, features, _curve(mean.found[CURVE]), nulls)


def density_bins(densities: Float[Tensor, " n"]) -> Float[Tensor, "n bins"]:
    """1 where a feature's log10 density lies in a bin; those outside are in the first or the last."""
    edges = torch.tensor(DENSITY_EDGES, dtype=torch.float64)
    place = torch.bucketize(densities.double().log10(), edges, right=True)
    count = len(DENSITY_EDGES) - 1
    return torch.nn.functional.one_hot(place.clamp(1, count) - 1, count).float()
