"""Which swept key moves features most: a summary per key, over the pairs that differ in this key alone.

Pairs with a run that still matches its start are left out wherever a key has others: they may match only
because of what they started from, a drawn dictionary (undertrained) or an SAE (fine-tuned). A key that has
no others is summarised, but not ranked or contrasted.
"""

import dataclasses
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
"""In the place of a key: the pairs that differ in more than one."""


@dataclass(frozen=True)
class KeySummary:
    """Summary of all pairs that differ in one swept key alone."""

    key: str
    """The swept key; `SEVERAL` for the pairs that differ in more than one."""
    values: tuple[str, ...]
    """Values of the key in these pairs; empty for `SEVERAL`."""
    pairs: int
    undertrained: int
    """Number of pairs with an SAE that still matches its start; they count below only if all pairs do."""
    mixed: int
    """Number of the pairs that count which are marked mixed."""
    ratio: float
    """Mean over pairs of the mean of both directions."""
    low: float
    """Lower end of the 95 % interval of `ratio`."""
    high: float
    lowest: float
    """Smallest over pairs of the mean of both directions."""
    highest: float
    live_ratio: float | None
    """`ratio` without dead features; None if densities are unknown."""
    mmcs: float
    """MMCS, averaged over pairs and directions."""
    histogram: tuple[int, ...]
    """Counts of the top-1 cosines of the pairs, both directions, between `COSINE_EDGES`."""
    inherited: int = 0
    """Number of the `undertrained` pairs in which such an SAE was fine-tuned."""

    @property
    def trained(self) -> bool:
        """Whether its numbers are of trained pairs, so that a conclusion can be drawn from them."""
        return self.undertrained < self.pairs


@dataclass(frozen=True)
class KeyContrast:
    """Contrast of two keys: how many more features match when `key` differs than when `other` does."""

    key: str
    other: str
    difference: float
    """Ratio of `key` minus ratio of `other`; never negative."""
    low: float
    """Lower end of the 95 % interval of the difference; if it is below 0, the difference may be chance."""
    high: float
    mixed: int = 0
    """Number of pairs of both keys that are marked mixed."""


def _pairs_by_key(rows: Mapping[Pair, PairRow]) -> dict[str, list[Pair]]:
    """Pairs by the one key in which they differ; those that differ in more under `SEVERAL`."""
    by_key: dict[str, list[Pair]] = {}
    for pair, row in rows.items():
        if row.varied:
            by_key.setdefault(row.varied[0] if len(row.varied) == 1 else SEVERAL, []).append(pair)
    return by_key


def summarise(
    entries: Sequence[ComparisonEntry],
    rows: Mapping[Pair, PairRow],
    resampled: Mapping[Pair, Float[Tensor, " resamples"]],
    histograms: Mapping[Pair, Int[np.ndarray, " bins"]],
) -> tuple[tuple[KeySummary, ...], tuple[KeyContrast, ...]]:
    """A summary per key, and a contrast of every two keys that have trained pairs.

    The strongest of those keys comes first; then keys without trained pairs, and `SEVERAL` last.
    """
    by_key = _pairs_by_key(rows)
    counted = {key: _counted(pairs, rows) for key, pairs in by_key.items()}
    draws = {key: _resampled_mean(pairs, resampled) for key, pairs in counted.items()}
    summaries = [
        dataclasses.replace(
            _summary(key, _values(key, pairs, entries), [rows[pair] for pair in pairs], draws[key],
                     total_histogram(histograms[pair] for pair in pairs)),
            pairs=len(by_key[key]),
            undertrained=sum(rows[pair].undertrained for pair in by_key[key]),
            inherited=sum(rows[pair].inherited for pair in by_key[key]),
        )
        for key, pairs in counted.items()
    ]  # fmt: skip
    summaries.sort(key=lambda summary: (summary.key == SEVERAL, not summary.trained, summary.ratio))
    alone = [summary for summary in summaries if summary.key != SEVERAL and summary.trained]
    contrasts = [_contrast(high, low, draws) for low, high in itertools.combinations(alone, 2)]
    return tuple(summaries), tuple(contrasts)


def _counted(pairs: Sequence[Pair], rows: Mapping[Pair, PairRow]) -> list[Pair]:
    """The trained pairs, or all of them if none is trained."""
    return [pair for pair in pairs if not rows[pair].undertrained] or list(pairs)


def _resampled_mean(pairs: Sequence[Pair], resampled: Mapping[Pair, Tensor]) -> Float[Tensor, " resamples"]:
    """Mean over pairs and directions in each resample."""
    return torch.stack([resampled[i, j] + resampled[j, i] for i, j in pairs]).mean(0) / 2


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
        mixed=sum(row.mixed for row in rows),
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
    return KeyContrast(high.key, low.key, high.ratio - low.ratio, *interval, mixed=high.mixed + low.mixed)


def _values(key: str, pairs: Sequence[Pair], entries: Sequence[ComparisonEntry]) -> tuple[str, ...]:
    if key == SEVERAL:
        return ()
    members = sorted(set(itertools.chain.from_iterable(pairs)))
    return tuple(dict.fromkeys(str(entries[i].keys[key]) for i in members if key in entries[i].keys))


def _mean_or_none(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
