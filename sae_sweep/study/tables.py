"""The study's tables, computed from the runs of a sweep and set beside what was published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sae_sweep.study.cells import FIGURE13_KS, Cell, figure13_cells, table1_cells
from sae_sweep.study.published import Footnote, published
from sae_sweep.study.runs import RunFinder, StudyRun
from sae_sweep.study.shares import Share, Shares
from sae_sweep.study.table2 import Table2Row, table2

SETTINGS = {
    "dataset": ("dataset",),
    "seed": ("seed_42_49",),
    "dictionary size": ("dictionary_large_in_small", "dictionary_small_in_large"),
    "architecture": ("architecture",),
    "sparsity": ("sparsity",),
}
"""Setting -> blocks of Table 1."""


@dataclass(frozen=True)
class CellResult:
    """A cell, measured if the sweep has both of its runs."""

    cell: Cell
    counted: StudyRun | None
    """The run whose features are counted; None if no run fits."""
    sought_in: StudyRun | None
    measured: Share | None
    """None if a run is missing."""
    undertrained: bool
    """Either run still matches its own initial dictionary above `matching.undertrained`."""
    mixed: bool
    """Part of either run was trained with other numerics."""
    footnotes: tuple[Footnote, ...]
    """Footnotes about the published value."""
    differs: tuple[str, ...] = ()
    """Differences between the two runs beyond what the cell varies; the counted run's value first."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The SAEs that the sweep has no run for."""
        wanted = ((self.counted, self.cell.counted), (self.sought_in, self.cell.sought_in))
        return tuple(str(facts) for run, facts in wanted if run is None)

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points."""
        if self.measured is None or self.cell.published is None:
            return None
        return 100 * self.measured.ratio - self.cell.published


@dataclass(frozen=True)
class Setting:
    """All cells of Table 1 whose two SAEs differ in one setting."""

    name: str
    cells: tuple[CellResult, ...]
    measured: float | None
    """Mean matching ratio in per cent over the cells that were measured; None if there are none."""
    published: float
    """Mean over the same cells as published; over all of them if none was measured."""
    undertrained: int
    """Measured cells with a run that still matches its own initial dictionary above the limit."""
    mixed: int
    """Measured cells with a run that was trained with other numerics for a part of the time."""


@dataclass(frozen=True)
class StudyTables:
    """All tables of the study for one set of runs."""

    table1: tuple[CellResult, ...]
    """In the study's order."""
    table2: tuple[Table2Row, ...]
    figure13: Mapping[int, tuple[CellResult, ...]]
    """k -> one cell for every two layers."""
    settings: tuple[Setting, ...]
    """Rows of Figure 1; the setting that moves features most comes first."""
    notes: tuple[str, ...]
    """One line per SAE of the study that several runs fit."""
    threshold: float
    undertrained_above: float

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """All cells of Table 1 and Figure 13."""
        return (*self.table1, *(result for k in self.figure13 for result in self.figure13[k]))


def study_tables(runs: Sequence[StudyRun], shares: Shares | None = None) -> StudyTables:
    """Fill every cell for which the sweep has both runs; the others say which run is missing.

    Args:
        runs: runs of one sweep. If several fit a cell, the first two that differ in nothing else fill it.
        shares: matches the runs, and keeps the results for further tables.

    Raises:
        SaeSweepError: if two runs of a cell cannot be compared (other widths, damaged weights).
    """
    shares = shares or Shares()
    finder = RunFinder(runs)
    table1 = tuple(_measure(cell, finder, shares) for cell in table1_cells())
    figure13 = {k: tuple(_measure(cell, finder, shares) for cell in figure13_cells(k)) for k in FIGURE13_KS}
    return StudyTables(
        table1=table1,
        table2=table2(finder, shares),
        figure13=figure13,
        settings=_settings(table1),
        notes=finder.notes,
        threshold=shares.config.threshold,
        undertrained_above=shares.config.undertrained,
    )


def _measure(cell: Cell, finder: RunFinder, shares: Shares) -> CellResult:
    """Find the two runs of a cell and match them."""
    counted, sought_in, differs = finder.pair(cell.counted, cell.sought_in)
    there = [run for run in (counted, sought_in) if run is not None]
    return CellResult(
        cell=cell,
        counted=counted,
        sought_in=sought_in,
        measured=shares.share(*there) if len(there) == 2 else None,
        undertrained=len(there) == 2 and shares.undertrained(*there),
        mixed=len(there) == 2 and any(run.mixed for run in there),
        footnotes=published().footnotes_of(cell.key),
        differs=differs,
    )


def _settings(results: Sequence[CellResult]) -> tuple[Setting, ...]:
    """Settings by their mean, lowest first: it moves features most; without a measured cell, last."""
    settings = [
        _setting(name, [result for result in results if result.cell.block in blocks])
        for name, blocks in SETTINGS.items()
    ]
    return tuple(sorted(settings, key=_order))


def _order(setting: Setting) -> tuple[bool, float]:
    if setting.measured is None:
        return True, setting.published
    return False, setting.measured


def _setting(name: str, results: Sequence[CellResult]) -> Setting:
    ratios = [result.measured.ratio for result in results if result.measured is not None]
    counted = [result for result in results if result.measured is not None or not ratios]
    return Setting(
        name=name,
        cells=tuple(results),
        measured=100 * fmean(ratios) if ratios else None,
        published=fmean(result.cell.published for result in counted if result.cell.published is not None),
        undertrained=sum(result.undertrained for result in results),
        mixed=sum(result.mixed for result in results),
    )
