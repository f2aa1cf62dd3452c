"""Comparison of every SAE of a sweep with every other.

Intervals are 95 % percentile bootstraps over features: the features of each SAE are redrawn once per
resample, and all its pairs use this draw, so that pairs that share an SAE stay correlated. The intervals
describe these SAEs; how much training runs differ shows in the range over pairs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sae_sweep.analysis.matching import MatchResult
from sae_sweep.analysis.pairs import (
    ComparisonEntry,
    Nearest,
    Pair,
    PairRow,
    make_row,
    match_pairs,
    total_histogram,
)
from sae_sweep.analysis.summary import KeyContrast, KeySummary, summarise
from sae_sweep.config import MatchingConfig, SaeSweepError


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Features of each SAE."""
    init_matches: tuple[float, ...]
    """Share of each SAE's features that match its own start."""
    mixed: tuple[bool, ...]
    """Whether part of each SAE was trained with other numerics."""
    keys: tuple[Mapping[str, Any], ...]
    """Swept keys of each SAE."""
    rows: tuple[PairRow, ...]
    """One per pair with equal d_in, in the order of `names`."""
    ratios: Float[np.ndarray, "k k"]
    """[i, j]: share of the features of SAE i that have a match in SAE j; NaN where they were not compared."""
    summaries: tuple[KeySummary, ...]
    """One per key that is the only difference of some pairs; the key that moves features most comes first."""
    contrasts: tuple[KeyContrast, ...]
    """One for every two of those keys."""
    histogram: tuple[int, ...]
    """Counts of the top-1 cosines of all pairs, both directions, between `COSINE_EDGES`."""
    nearest: Mapping[tuple[str, str], Nearest]
    """[a, b]: the nearest feature of the SAE named b for each feature of a."""
    threshold: float
    undertrained_above: float
    starts: tuple[str, ...]
    """Label of the SAE that each was fine-tuned from; empty if its start was drawn."""


def compare(
    entries: Sequence[ComparisonEntry],
    config: MatchingConfig | None = None,
    *,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Match every pair of SAEs with equal d_in.

    Args:
        entries: the trained SAEs.
        config: thresholds.
        device: where the cosines are computed; by default where the decoders are.
        seed: seed of the bootstrap.
        progress: called with (pairs done, pairs in total).

    Raises:
        SaeSweepError: if two entries share a name, or a decoder cannot be compared.
    """
    config = config or MatchingConfig()
    _check_names(entries)
    store = match_pairs(entries, config, device, progress)
    resampled = store.resampled(seed)
    rows = {
        pair: make_row(entries, pair, result, resampled, config) for pair, result in store.results.items()
    }
    summaries, contrasts = summarise(entries, rows, resampled, store.histograms)
    return Comparison(
        names=tuple(entry.name for entry in entries),
        sizes=tuple(len(entry.decoder) for entry in entries),
        init_matches=tuple(entry.init_match for entry in entries),
        mixed=tuple(entry.mixed for entry in entries),
        keys=tuple(dict(entry.keys) for entry in entries),
        rows=tuple(rows.values()),
        ratios=_matrix(len(entries), store.results),
        summaries=summaries,
        contrasts=contrasts,
        histogram=total_histogram(store.histograms.values()),
        nearest={(entries[i].name, entries[j].name): one for (i, j), one in store.nearest.items()},
        threshold=config.threshold,
        undertrained_above=config.undertrained,
        starts=tuple(entry.start for entry in entries),
    )


def _matrix(count: int, results: Mapping[Pair, MatchResult]) -> Float[np.ndarray, "k k"]:
    ratios = np.full((count, count), np.nan)
    for (i, j), result in results.items():
        ratios[i, j], ratios[j, i] = result.ratio_a_in_b, result.ratio_b_in_a
    return ratios


def _check_names(entries: Sequence[ComparisonEntry]) -> None:
    repeated = [name for name, times in Counter(entry.name for entry in entries).items() if times > 1]
    if repeated:
        raise SaeSweepError(f"comparison: {', '.join(repeated)} given more than once")
