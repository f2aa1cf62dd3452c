"""Which swept key moves the feature set most: pairs of SAEs that differ in one key and no other."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.bootstrap import percentile_interval
from sae_sweep.analysis.pairs import ComparisonEntry, Pair, PairRow, total_histogram

SEVERAL = "several"
"""Group of the pairs that differ in more than one key."""


@dataclass(frozen=True)
class KeySummary:
    """All pairs that differ in one swept key and no other."""

    key: str
    """Or `SEVERAL`: the pairs that differ in more than one."""
    values: tuple[str, ...]
    """Values of the key in these pairs; empty for `SEVERAL`."""
    pairs: int
    undertrained: int
    """How many of the pairs are marked undertrained."""
    ratio: float
    """Mean over pairs of the mean of both directions."""
    low: float
    """Of the 95 % interval of that mean."""
    high: float
    lowest: float
    """Smallest mean of both directions of any pair."""
    highest: float
    live_ratio: float | None
    """`ratio` with dead features left out; None where densities are not known."""
    mmcs: float
    """Mean over pairs and directions."""
    histogram: tuple[int, ...]
    """Top-1 cosines of the pairs, both directions, between `COSINE_EDGES`."""


@dataclass(frozen=True)
class KeyContrast:
    """How much more the pairs of one group match than those of another."""

    key: str
    other: str
    difference: float
    """Ratio of `key` minus ratio of `other`; never negative."""
    low: float
    """Of the 95 % interval of the difference; below 0 where it may be chance."""
    high: float


def group_by_key(rows: Mapping[Pair, PairRow]) -> dict[str, list[Pair]]:
    """Pairs by the one key in which they differ; those that differ in more under `SEVERAL`."""
    groups: dict[str, list[Pair]] = {}
    for pair, row in rows.items():
        if row.varied:
            groups.setdefault(row.varied[0] if len(row.varied) == 1 else SEVERAL, []).append(pair)
    return groups


def summarise(
    entries: Sequence[ComparisonEntry],
    rows: Mapping[Pair, PairRow],
    resampled: Mapping[Pair, Float[Tensor, " resamples"]],
    histograms: Mapping[Pair, Int[np.ndarray, " bins"]],
) -> tuple[tuple[KeySummary, ...], tuple[KeyContrast, ...]]:
    """A summary of each key, what moves features most first, then `SEVERAL`; and every two keys compared."""
    groups = group_by_key(rows)
    draws = {key: _resampled_mean(group, resampled) for key, group in groups.items()}
    summaries = [
        _summary(key, _values(key, group, entries), [rows[pair] for pair in group], draws[key],
                 total_histogram(histograms[pair] for pair in group))
        for key, group in groups.items()
    ]  # fmt: skip
    summaries.sort(key=lambda summary: (summary.key == SEVERAL, summary.ratio))
    alone = [summary for summary in summaries if summary.key != SEVERAL]
    contrasts = [_contrast(high, low, draws) for low, high in itertools.combinations(alone, 2)]
    return tuple(summaries), tuple(contrasts)


def _resampled_mean(group: Sequence[Pair], resampled: Mapping[Pair, Tensor]) -> Float[Tensor, " resamples"]:
    """Mean over the pairs, both directions, in every resample."""
    return torch.stack([resampled[i, j] + resampled[j, i] for i, j in group]).mean(0) / 2


def _summary(
    key: str, values: tuple[str, ...], rows: Sequence[PairRow], draws: Tensor, histogram: tuple[int, ...]
) -> KeySummary:
    ratios = [(row.ratio_a_in_b + row.ratio_b_in_a) / 2 for row in rows]
    live = [_mean_or_none(row.live_ratio_a_in_b, row.live_ratio_b_in_a) for row in rows]
    low, high = percentile_interval(draws)
    return KeySummary(
        key=key,
        values=values,
        pairs=len(rows),
        undertrained=sum(row.undertrained for row in rows),
        ratio=float(np.mean(ratios)),
        low=low,
        high=high,
        lowest=min(ratios),
        highest=max(ratios),
        live_ratio=_mean_or_none(*live),
        mmcs=float(np.mean([(row.mmcs_a_to_b + row.mmcs_b_to_a) / 2 for row in rows])),
        histogram=histogram,
    )


def _contrast(high: KeySummary, low: KeySummary, draws: Mapping[str, Tensor]) -> KeyContrast:
    interval = percentile_interval(draws[high.key] - draws[low.key])
    return KeyContrast(high.key, low.key, high.ratio - low.ratio, *interval)


def _values(key: str, group: Sequence[Pair], entries: Sequence[ComparisonEntry]) -> tuple[str, ...]:
    if key == SEVERAL:
        return ()
    members = sorted(set(itertools.chain.from_iterable(group)))
    return tuple(dict.fromkeys(str(entries[i].keys[key]) for i in members if key in entries[i].keys))


def _mean_or_none(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
