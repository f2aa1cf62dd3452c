"""Dose-response: how many features of an SAE of one text are found again, by the share of another text.

The SAEs of a ladder read two texts in different shares. Features of the SAEs that read one text alone are
sought in all others. Only pairs of different seeds count, so that a share of 1 shows what two seeds share.
As in every comparison, pairs with an undertrained SAE are left out wherever a point has others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from sae_sweep.analysis.bootstrap import bootstrap_means, percentile_interval

FEATURES = ("all", "own")
"""Features that are sought: all, or those that other SAEs of their text have and none of the other text."""
Mask = Bool[np.ndarray, " n"]


class Dosed(NamedTuple):
    """An SAE of a ladder."""

    name: str
    seed: int
    share: float
    """Share of the second text in what it read; that of the first is the rest."""
    undertrained: bool = False


@dataclass(frozen=True)
class DosePoint:
    """A point of a dose-response curve."""

    features: str
    """Which features are sought: one of `FEATURES`."""
    text: int
    """0 or 1: the text that the SAEs with these features read alone."""
    share: float
    """Share of that text in the SAEs in which they are sought."""
    ratio: float
    """Share of the features that have a match, over the pairs that count; NaN without a feature to seek."""
    low: float
    """Lower end of the 95 % interval over features."""
    high: float
    lowest: float
    """Smallest of the pairs."""
    highest: float
    pairs: int
    n: int
    """Features that are sought, of the pairs that count."""
    undertrained: int
    """Number of pairs with an undertrained SAE; they count only if all pairs are such."""

    @property
    def trained(self) -> bool:
        """Whether its numbers are of trained pairs, so that a conclusion can be drawn from them."""
        return self.undertrained < self.pairs


def dose_curves(
    runs: Sequence[Dosed], matched: Mapping[tuple[str, str], Mask], *, seed: int = 0
) -> list[DosePoint]:
    """The curves of both texts, by share; empty without a pair of different seeds.

    Args:
        runs: of a ladder.
        matched: [a, b]: which features of the SAE named a have a match in b.
        seed: of the bootstrap.
    """
    points = []
    for features in FEATURES:
        for text in (0, 1):
            alone = [run for run in runs if run.share == text]
            for dose in sorted({run.share for run in runs}, reverse=text == 0):
                sought = [
                    [one for one in runs if one.share == dose and one.seed != run.seed] for run in alone
                ]
                parts = [
                    _sought(run, one, runs, matched, features)
                    for run, others in zip(alone, sought, strict=True)
                    for one in others
                ]
                if parts:
                    share = dose if text else round(1 - dose, 9)
                    points.append(_point(features, text, share, parts, seed))
    return points


class _Sought(NamedTuple):
    """Features of one SAE that are sought in another."""

    name: str
    """Name of the SAE that has these features."""
    found: Mask
    sought: Mask
    undertrained: bool


def _sought(
    run: Dosed, one: Dosed, runs: Sequence[Dosed], matched: Mapping[tuple[str, str], Mask], features: str
) -> _Sought:
    """The features of `run` that are sought in `one`, which has no say in which these are."""
    found = matched[run.name, one.name]
    chosen = np.ones(len(found), dtype=bool)
    if features == "own":
        others = [other for other in runs if other.name not in (run.name, one.name)]
        same = [matched[run.name, other.name] for other in others if other.share == run.share]
        opposite = [matched[run.name, other.name] for other in others if other.share == 1 - run.share]
        chosen = _any(same, len(found)) & ~_any(opposite, len(found))
        chosen &= bool(opposite)
    return _Sought(run.name, found & chosen, chosen, run.undertrained or one.undertrained)


def _any(masks: Sequence[Mask], n: int) -> Mask:
    return np.any(masks, axis=0) if masks else np.zeros(n, dtype=bool)


def _point(features: str, text: int, share: float, pairs: Sequence[_Sought], seed: int) -> DosePoint:
    parts = [pair for pair in pairs if not pair.undertrained] or pairs
    found, sought = (sum(int(getattr(part, name).sum()) for part in parts) for name in ("found", "sought"))
    each = [part.found.sum() / part.sought.sum() for part in parts if part.sought.any()]
    low, high = _interval(parts, seed) if sought else (math.nan, math.nan)
    return DosePoint(
        features=features,
        text=text,
        share=share,
        ratio=found / sought if sought else math.nan,
        low=low,
        high=high,
        lowest=float(min(each, default=math.nan)),
        highest=float(max(each, default=math.nan)),
        pairs=len(pairs),
        n=sought,
        undertrained=sum(pair.undertrained for pair in pairs),
    )


def _interval(parts: Sequence[_Sought], seed: int) -> tuple[float, float]:
    """95 % interval of the pooled share: the features of each SAE are redrawn, the same for all its pairs."""
    by_name: dict[str, list[_Sought]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    total = torch.zeros(())
    for number, some in enumerate(by_name.values()):
        found = np.sum([part.found for part in some], axis=0)
        counts = torch.tensor(np.stack([found, np.sum([part.sought for part in some], axis=0)], 1))
        total = total + len(counts) * bootstrap_means(counts.float(), seed=seed + number)
    ratios = total[:, 0] / total[:, 1]
    return percentile_interval(ratios[~ratios.isnan()])
