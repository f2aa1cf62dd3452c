"""What fine-tuning does to an SAE's reconstruction of a text, with intervals over the order of the data.

SAEs of one setting differ in the order of their data alone (`data_seed`, `shuffle_seed`) or, from scratch, in
their seed. Two settings are compared by pairs of equal order, and each fine-tuned SAE with the one that it
started from. All read the same held-out text, so that the intervals say nothing about other texts.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_START = "start_"
METRICS = ("explained_variance", "explained_variance_rare", "ce_delta", "alive", "new_features")


class Setting(NamedTuple):
    """What sets the SAEs of a text apart, beside the order of their data."""

    start: str
    """Label of the SAE that they are fine-tuned from; empty: from scratch."""
    tilt: float | None
    """`optimizer.tilt`."""


class Tuned(NamedTuple):
    """An SAE, fine-tuned or from scratch."""

    name: str
    setting: Setting
    order: tuple[int, ...]
    """`data_seed`, `shuffle_seed` and `seed`."""
    metrics: Mapping[str, float]
    """Metrics of its evaluation, and of that of its start (`start_`)."""


@dataclass(frozen=True)
class Effect:
    """A metric of the SAEs of a setting, or how it differs from that of others."""

    setting: Setting
    against: Setting | None
    """The setting that it is compared with; None: the value itself."""
    metric: str
    value: float
    """Mean over the orders of the data."""
    low: float
    """Lower end of the 95 % interval (Student's t); NaN with a single order."""
    high: float
    runs: int


GENERAL = math.inf
"""In place of a tilt: the SAE that others are fine-tuned from, as it was."""


def effects(runs: Sequence[Tuned]) -> list[Effect]:
    """The metrics of every setting, then the differences between settings, and from the general SAEs."""
    runs = [*_general(runs), *runs]
    settings = dict.fromkeys(run.setting for run in runs)
    found: list[Effect] = []
    for one, metric in itertools.product(settings, METRICS):
        values = [run.metrics[metric] for run in runs if run.setting == one and metric in run.metrics]
        found += _effect(one, None, metric, values[:1] if one.tilt == GENERAL else values)
    for (one, other), metric in itertools.product(_compared(list(settings)), METRICS):
        found += _effect(one, other, metric, _differences(runs, one, other, metric))
    return found


def _general(runs: Sequence[Tuned]) -> list[Tuned]:
    """The SAEs that runs are fine-tuned from, once per order of the data."""
    found: dict[tuple[str, tuple[int, ...]], Tuned] = {}
    for run in runs:
        known = {
            name.removeprefix(_START): value for name, value in run.metrics.items() if name.startswith(_START)
        }
        if start := run.setting.start:
            found[start, run.order] = Tuned(start, Setting(start, GENERAL), run.order, known)
    return list(found.values())


def _compared(settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    """Fine-tuned and general, fine-tuned and from scratch with the same tilt, tilted and not."""
    trained = [one for one in settings if one.tilt != GENERAL]
    for one in trained:
        if one.start:
            yield one, Setting(one.start, GENERAL)
            yield one, Setting("", one.tilt)
    for one in trained:
        if one.tilt is not None:
            yield one, Setting(one.start, None)


def _differences(runs: Sequence[Tuned], one: Setting, other: Setting, metric: str) -> list[float]:
    """Differences of a metric, one per order of the data that both settings have."""
    own, there = (
        {run.order: run.metrics[metric] for run in runs if run.setting == each and metric in run.metrics}
        for each in (one, other)
    )
    return [value - there[order] for order, value in own.items() if order in there]


def _effect(
    setting: Setting, against: Setting | None, metric: str, values: Sequence[float]
) -> Iterator[Effect]:
    """The mean with its interval; nothing without values."""
    if values:
        yield Effect(setting, against, metric, *mean_interval(values), len(values))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval by Student's t; the interval is NaN for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
