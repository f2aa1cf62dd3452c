"""The study's tables, computed from the runs of a sweep and set beside what was published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_sweep.study.cells import FIGURE13_KS, Cell, figure13_cells, table1_cells
from sae_sweep.study.published import Footnote, published
from sae_sweep.study.runs import RunFinder, StudyRun
from sae_sweep.study.settings import Setting, settings
from sae_sweep.study.shares import Share, Shares
from sae_sweep.study.table2 import Table2Row, table2


@dataclass(frozen=True)
class CellResult:
    """A cell, measured if both of its runs are there."""

    cell: Cell
    counted: StudyRun | None
    """The run whose features are counted; None if the sweep has none that fits."""
    sought_in: StudyRun | None
    measured: Share | None
    """None if a run is missing."""
    undertrained: bool
    """Either run still matches its own initial dictionary above `matching.undertrained`."""
    footnotes: tuple[Footnote, ...]
    """What is known to be wrong or unclear about the published value."""
    differs: tuple[str, ...] = ()
    """What differs between the two runs beside what the cell varies; the counted run's value first."""

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
class StudyTables:
    """All tables of the study for one set of runs."""

    table1: tuple[CellResult, ...]
    """In the study's order."""
    table2: tuple[Table2Row, ...]
    figure13: Mapping[int, tuple[CellResult, ...]]
    """k -> a cell for every two layers."""
    settings: tuple[Setting, ...]
    """Figure 1: what moves the features most comes first."""
    notes: tuple[str, ...]
    """Where several runs could stand for an SAE of the study."""
    threshold: float
    undertrained_above: float

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """Of Table 1 and Figure 13."""
        return (*self.table1, *(result for k in self.figure13 for result in self.figure13[k]))


def study_tables(runs: Sequence[StudyRun], shares: Shares | None = None) -> StudyTables:
    """Fill every cell whose two runs are there; the others say which run is missing.

    Args:
        runs: of one sweep. Where several fit, the first two that differ in nothing else stand in the cell.
        shares: what matches them; keeps its results for further tables.

    Raises:
        SaeSweepError: if two runs of a cell cannot be compared (other widths, damaged weights).
    """
    shares = shares or Shares()
    finder = RunFinder(runs)
    table1 = tuple(measure(cell, finder, shares) for cell in table1_cells())
    figure13 = {k: tuple(measure(cell, finder, shares) for cell in figure13_cells(k)) for k in FIGURE13_KS}
    return StudyTables(
        table1=table1,
        table2=table2(finder, shares),
        figure13=figure13,
        settings=settings([(result.cell, result.measured, result.undertrained) for result in table1]),
        notes=finder.notes,
        threshold=shares.config.threshold,
        undertrained_above=shares.config.undertrained,
    )


def measure(cell: Cell, finder: RunFinder, shares: Shares) -> CellResult:
    """One cell."""
    counted, sought_in, differs = finder.pair(cell.counted, cell.sought_in)
    there = [run for run in (counted, sought_in) if run is not None]
    return CellResult(
        cell=cell,
        counted=counted,
        sought_in=sought_in,
        measured=shares.share(*there) if len(there) == 2 else None,
        undertrained=len(there) == 2 and shares.undertrained(*there),
        footnotes=published().footnotes_of(cell.key),
        differs=differs,
    )
