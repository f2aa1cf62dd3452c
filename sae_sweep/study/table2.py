"""Table 2: how many more features of a large dictionary match a small one than the other way round.

F_large * r(large in small) - F_small * r(small in large), in features.
"""

import math
from dataclasses import dataclass

from sae_sweep.analysis.bootstrap import percentile_interval
from sae_sweep.study.cells import Cell, table2_rows
from sae_sweep.study.published import Footnote, published
from sae_sweep.study.runs import RunFinder, StudyRun
from sae_sweep.study.shares import Share, Shares

FOLLOWS, TRUNCATED, DOES_NOT_FOLLOW = "follows", "truncated", "does not follow"


@dataclass(frozen=True)
class Surplus:
    """Matched features of the large dictionary beyond those of the small one."""

    features: float
    low: float
    """Lower end of the 95 % bootstrap interval over the features of both."""
    high: float
    large: int
    """Features of the large dictionary."""
    small: int
    """Features of the small dictionary."""
    live: float | None
    """`features` without the dead features of both; None if densities are unknown."""


@dataclass(frozen=True)
class Table2Row:
    """One cell of Table 2: two dictionary sizes on one dataset."""

    key: str
    """`table2/row/column`."""
    row: str
    """For example `3072-12288`."""
    column: str
    printed: int
    """What the study prints, in features."""
    recomputed: float
    """What follows from the published Table 1."""
    verdict: str
    """Whether the printed number follows from `recomputed`: `follows`, `truncated` or `does not follow`."""
    measured: Surplus | None
    """None if a run is missing."""
    large: StudyRun | None
    """The run with the large dictionary; None if the sweep has none that fits."""
    small: StudyRun | None
    undertrained: bool
    mixed: bool
    missing: tuple[str, ...]
    """The SAEs that the sweep has no run for."""
    footnotes: tuple[Footnote, ...]
    differs: tuple[str, ...]
    """Differences between the two runs except their size; the large one's value first."""
    choice: str
    """What the study leaves open here, and what is chosen."""

    @property
    def difference(self) -> float | None:
        """Measured minus printed, in features."""
        return None if self.measured is None else self.measured.features - self.printed


def recompute_table2() -> dict[str, float]:
    """Table 2 as it follows from the published Table 1: key -> features."""
    return {
        key: _matched(large_in_small) - _matched(small_in_large)
        for key, _, _, large_in_small, small_in_large in table2_rows()
    }


def _matched(cell: Cell) -> float:
    """Features of the counted SAE that have a match, as published."""
    return published().baseline.d_in * cell.counted.dictionary * (cell.published or math.nan) / 100


def verdict(printed: int, recomputed: float) -> str:
    """Whether a printed whole number follows from a recomputed one."""
    if printed == round(recomputed):
        return FOLLOWS
    return TRUNCATED if printed == math.trunc(recomputed) else DOES_NOT_FOLLOW


def table2(finder: RunFinder, shares: Shares) -> tuple[Table2Row, ...]:
    """Every cell of Table 2: printed, recomputed, and measured where both runs are there."""
    study = published()
    recomputed = recompute_table2()
    rows = []
    for key, row, column, large_in_small, _ in table2_rows():
        printed = int(study.table2[row][study.columns.index(column)])
        wanted = (large_in_small.counted, large_in_small.sought_in)
        large, small, differs = finder.pair(*wanted)
        there = [run for run in (large, small) if run is not None]
        rows.append(
            Table2Row(
                key=key,
                row=row,
                column=column,
                printed=printed,
                recomputed=recomputed[key],
                verdict=verdict(printed, recomputed[key]),
                measured=_surplus(large, small, shares) if large and small else None,
                large=large,
                small=small,
                undertrained=len(there) == 2 and shares.undertrained(*there),
                mixed=len(there) == 2 and any(run.mixed for run in there),
                missing=tuple(
                    str(facts) for run, facts in zip((large, small), wanted, strict=True) if run is None
                ),
                footnotes=study.footnotes_of(key),
                differs=differs,
                choice=large_in_small.choice,
            )
        )
    return tuple(rows)


def _surplus(large: StudyRun, small: StudyRun, shares: Shares) -> Surplus:
    there, back = shares.share(large, small), shares.share(small, large)
    draws = there.n * shares.draws(large, small) - back.n * shares.draws(small, large)
    low, high = percentile_interval(draws)
    live = [_live(there), _live(back)]
    return Surplus(
        features=there.n * there.ratio - back.n * back.ratio,
        low=low,
        high=high,
        large=there.n,
        small=back.n,
        live=None if live[0] is None or live[1] is None else live[0] - live[1],
    )


def _live(share: Share) -> float | None:
    """Live features that have a match; None where densities are not known."""
    if share.n_live is None or share.live_ratio is None:
        return None
    return share.n_live * share.live_ratio if share.n_live else 0.0
