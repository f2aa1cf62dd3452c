"""Pairs of SAEs: the entries of a comparison, what is kept per pair, and its row of results."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.bootstrap import bootstrap_means, percentile_interval
from sae_sweep.analysis.matching import MatchResult, match
from sae_sweep.config import MatchingConfig, SaeSweepError

COSINE_EDGES = tuple(round(-1 + i * 0.02, 2) for i in range(101))
"""Bin edges of the top-1 cosine histograms; 0.7 is one of them."""
Pair = tuple[int, int]
"""Indices of two entries."""


@dataclass(frozen=True)
class ComparisonEntry:
    """A trained SAE to be compared."""

    name: str
    """The run's name, unique in the comparison."""
    keys: Mapping[str, Any]
    """The swept keys and this run's values, such as `{"seed": 42, "dataset": "owt"}`."""
    decoder: Float[Tensor, "n d_in"]
    """`W_dec`."""
    init_match: float
    """Share of features that match the SAE's own start (`match_to_init`)."""
    densities: Float[Tensor, " n"] | None = None
    """Share of held-out tokens on which each feature fires; None if it was not evaluated."""
    mean_activations: Float[Tensor, " n"] | None = None
    """Mean of each feature's activations on tokens where it fires; None if it was not evaluated."""
    mixed: bool = False
    """Whether part of it was trained with other numerics (`Conditions.mixed`)."""
    start: str = ""
    """Label of the SAE that it was fine-tuned from; empty if its start was drawn."""


@dataclass(frozen=True)
class PairRow:
    """Results for two SAEs; `x_in_y` is the share of x's features that have a match among y's."""

    a: str
    b: str
    varied: tuple[str, ...]
    """Swept keys in which the two differ."""
    ratio_b_in_a: float
    ratio_b_in_a_low: float
    """Lower end of the 95 % interval."""
    ratio_b_in_a_high: float
    ratio_a_in_b: float
    ratio_a_in_b_low: float
    ratio_a_in_b_high: float
    live_ratio_b_in_a: float | None
    """`ratio_b_in_a` without the dead features of both; None if densities are unknown."""
    live_ratio_a_in_b: float | None
    mmcs_a_to_b: float
    """Mean over a's features of the best cosine among b's."""
    mmcs_b_to_a: float
    n_a: int
    n_b: int
    n_live_a: int | None
    n_live_b: int | None
    init_match_a: float
    init_match_b: float
    undertrained: bool
    """Either SAE still matches its own start above `matching.undertrained`."""
    mixed: bool = False
    """Part of either SAE was trained with other numerics."""
    inherited: bool = False
    """Such an SAE was fine-tuned, so that what the two share may be inherited from its start."""


class Nearest(NamedTuple):
    """The nearest feature of another SAE for each feature of an SAE."""

    feature: Int[np.ndarray, " n"]
    """Row of the other SAE's decoder, int32."""
    cosine: Float[np.ndarray, " n"]
    """Float32; of the decoder rows."""


class PairStore:
    """Keeps per pair its ratios, one bit per feature, and which features are nearest."""

    def __init__(self, entries: Sequence[ComparisonEntry]) -> None:
        self.results: dict[Pair, MatchResult] = {}
        self.histograms: dict[Pair, Int[np.ndarray, " bins"]] = {}
        self.nearest: dict[Pair, Nearest] = {}
        self._matched: list[dict[int, Tensor]] = [{} for _ in entries]

    def add(self, i: int, j: int, result: MatchResult) -> None:
        self._matched[i][j] = result.top1_a > result.threshold
        self._matched[j][i] = result.top1_b > result.threshold
        self.nearest[i, j] = _nearest(result.index_a, result.top1_a)
        self.nearest[j, i] = _nearest(result.index_b, result.top1_b)
        cosines = np.concatenate([self.nearest[i, j].cosine, self.nearest[j, i].cosine])
        self.histograms[i, j] = np.histogram(cosines, COSINE_EDGES)[0]
        none, no_rows = torch.empty(0), torch.empty(0, dtype=torch.long)
        self.results[i, j] = result._replace(
            top1_a=none, top1_b=none, live_top1_a=None, live_top1_b=None, index_a=no_rows, index_b=no_rows
        )

    def resampled(self, seed: int) -> dict[Pair, Float[Tensor, " resamples"]]:
        """Resampled ratios: [i, j] is the ratio "i in j" in each resample of i's features."""
        ratios: dict[Pair, Tensor] = {}
        for i, matched in enumerate(self._matched):
            if matched:
                means = bootstrap_means(torch.stack(list(matched.values()), 1).float(), seed=seed + i)
                ratios.update({(i, j): means[:, column] for column, j in enumerate(matched)})
        return ratios


def _nearest(rows: Int[Tensor, " n"], cosines: Float[Tensor, " n"]) -> Nearest:
    return Nearest(rows.numpy().astype(np.int32), cosines.numpy())


def match_pairs(
    entries: Sequence[ComparisonEntry],
    config: MatchingConfig,
    device: torch.device | None,
    progress: Callable[[int, int], None] | None,
) -> PairStore:
    """Match every pair of entries with equal d_in."""
    pairs = PairStore(entries)
    chosen = [
        (i, j)
        for i, j in itertools.combinations(range(len(entries)), 2)
        if entries[i].decoder.shape[1] == entries[j].decoder.shape[1]
    ]
    for done, (i, j) in enumerate(chosen, start=1):
        pairs.add(i, j, _match_entries(entries[i], entries[j], config.threshold, device))
        if progress is not None:
            progress(done, len(chosen))
    return pairs


def _match_entries(
    a: ComparisonEntry, b: ComparisonEntry, threshold: float, device: torch.device | None
) -> MatchResult:
    try:
        return match(
            *(a.decoder.to(device), b.decoder, threshold),
            densities_a=a.densities,
            densities_b=b.densities,
        )
    except SaeSweepError as error:
        raise SaeSweepError(f"{error} (a is {a.name}, b is {b.name})") from error


def make_row(
    entries: Sequence[ComparisonEntry],
    pair: Pair,
    result: MatchResult,
    resampled: Mapping[Pair, Tensor],
    config: MatchingConfig,
) -> PairRow:
    """The row of results of one pair."""
    i, j = pair
    a, b = entries[i], entries[j]
    a_low, a_high = percentile_interval(resampled[i, j])
    b_low, b_high = percentile_interval(resampled[j, i])
    return PairRow(
        a=a.name,
        b=b.name,
        varied=varied_keys(a.keys, b.keys),
        ratio_b_in_a=result.ratio_b_in_a,
        ratio_b_in_a_low=b_low,
        ratio_b_in_a_high=b_high,
        ratio_a_in_b=result.ratio_a_in_b,
        ratio_a_in_b_low=a_low,
        ratio_a_in_b_high=a_high,
        live_ratio_b_in_a=result.live_ratio_b_in_a,
        live_ratio_a_in_b=result.live_ratio_a_in_b,
        mmcs_a_to_b=result.mmcs_a_to_b,
        mmcs_b_to_a=result.mmcs_b_to_a,
        n_a=result.n_a,
        n_b=result.n_b,
        n_live_a=result.n_live_a,
        n_live_b=result.n_live_b,
        init_match_a=a.init_match,
        init_match_b=b.init_match,
        undertrained=max(a.init_match, b.init_match) > config.undertrained,
        mixed=a.mixed or b.mixed,
        inherited=any(one.start != "" and one.init_match > config.undertrained for one in (a, b)),
    )


def varied_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys in which two runs differ.

    A key that only one run has (`k` beside `l0_coefficient`) follows from a difference in another key, the
    architecture, so it counts only if no other key differs.
    """
    shared = [key for key in a if key in b and a[key] != b[key]]
    return tuple(shared or [key for key in {**a, **b} if (key in a) != (key in b)])


def total_histogram(histograms: Iterable[Int[np.ndarray, " bins"]]) -> tuple[int, ...]:
    total = sum(histograms, start=np.zeros(len(COSINE_EDGES) - 1, dtype=np.int64))
    return tuple(int(count) for count in total)
