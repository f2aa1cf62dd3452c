"""Matching ratios of pairs of runs; each pair is matched once, in however many tables it stands."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import RESAMPLES, bootstrap_means, percentile_interval
from sae_sweep.analysis.matching import MatchResult, match
from sae_sweep.config import MatchingConfig, SaeSweepError
from sae_sweep.study.runs import StudyRun


@dataclass(frozen=True)
class Share:
    """Share of the features of one run that have a match in another."""

    ratio: float
    low: float
    """Lower end of the 95 % bootstrap interval over the features that are counted."""
    high: float
    n: int
    """Number of features that are counted: the denominator."""
    live_ratio: float | None
    """`ratio` without the dead features of both; None if densities are unknown, NaN if none is live."""
    n_live: int | None


class _Side(NamedTuple):
    """One direction of a pair: which of the counted features have a match."""

    matched: Bool[Tensor, " n"]
    live_matched: Bool[Tensor, " n_live"] | None
    live_ratio: float | None


class Shares:
    """Matches pairs of runs on demand; keeps one bit per feature, not the cosines."""

    def __init__(
        self,
        config: MatchingConfig | None = None,
        *,
        device: torch.device | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            config: thresholds.
            device: where cosines are computed; by default where the decoders are.
            seed: seed of the bootstrap.
            progress: called with the number of pairs matched so far.
        """
        self.config = config or MatchingConfig()
        self._device = device
        self._seed = seed
        self._progress = progress
        self._sides: dict[tuple[StudyRun, StudyRun], _Side] = {}
        self._draws: dict[tuple[StudyRun, StudyRun, bool], Tensor] = {}

    def share(self, counted: StudyRun, sought_in: StudyRun) -> Share:
        """Share of `counted`'s features that have a match in `sought_in`.

        Raises:
            SaeSweepError: if the two cannot be compared, naming them.
        """
        side = self._side(counted, sought_in)
        low, high = percentile_interval(self.draws(counted, sought_in))
        return Share(
            ratio=side.matched.double().mean().item(),
            low=low,
            high=high,
            n=len(side.matched),
            live_ratio=side.live_ratio,
            n_live=None if side.live_matched is None else len(side.live_matched),
        )

    def draws(
        self, counted: StudyRun, sought_in: StudyRun, *, live: bool = False
    ) -> Float[Tensor, " resamples"]:
        """The ratio in each resample of `counted`'s features.

        All pairs with an SAE use the same resamples of it, so that pairs that share an SAE stay correlated.
        """
        key = (counted, sought_in, live)
        if key not in self._draws:
            values = self._bits(counted, sought_in, live=live).float()
            self._draws[key] = (
                bootstrap_means(values[:, None], seed=self._seed_of(counted))[:, 0]
                if len(values)
                else torch.full((RESAMPLES,), torch.nan)
            )
        return self._draws[key]

    def live_ratio(self, counted: StudyRun, sought_in: StudyRun) -> float:
        """Ratio among live features, NaN if there are none; if a run was not evaluated, all count as live."""
        return self._bits(counted, sought_in, live=True).double().mean().item()

    def undertrained(self, *runs: StudyRun) -> bool:
        """Whether any of the runs still matches its own initial dictionary above the limit."""
        return any(run.init_match > self.config.undertrained for run in runs)

    def _bits(self, counted: StudyRun, sought_in: StudyRun, *, live: bool) -> Tensor:
        side = self._side(counted, sought_in)
        return side.matched if not live or side.live_matched is None else side.live_matched

    def _seed_of(self, run: StudyRun) -> int:
        # from the name, so that resamples do not depend on which other runs there are
        return self._seed + zlib.crc32(run.name.encode())

    def _side(self, counted: StudyRun, sought_in: StudyRun) -> _Side:
        if (counted, sought_in) not in self._sides:
            result = self._match(sought_in, counted)
            self._sides[counted, sought_in] = _side(
                result.top1_b, result.live_top1_b, result.live_ratio_b_in_a, result.threshold
            )
            self._sides[sought_in, counted] = _side(
                result.top1_a, result.live_top1_a, result.live_ratio_a_in_b, result.threshold
            )
            if self._progress is not None:
                self._progress(len(self._sides) // 2)
        return self._sides[counted, sought_in]

    def _match(self, a: StudyRun, b: StudyRun) -> MatchResult:
        try:
            return match(
                a.decoder().to(self._device),
                b.decoder(),
                self.config.threshold,
                densities_a=a.densities(),
                densities_b=b.densities(),
            )
        except SaeSweepError as error:
            raise SaeSweepError(f"{error} (a is {a.name}, b is {b.name})") from error


def _side(top1: Tensor, live_top1: Tensor | None, live_ratio: float | None, threshold: float) -> _Side:
    return _Side(top1 > threshold, None if live_top1 is None else live_top1 > threshold, live_ratio)
