"""The study's section of `report.html`: its tables and figures, measured beside published."""

from collections.abc import Sequence
from pathlib import Path

from sae_sweep.report.page.sections import Cell, Section, Table
from sae_sweep.study.answers import Answer
from sae_sweep.study.files import StudyFiles, percent
from sae_sweep.study.finished_runs import FinishedRuns
from sae_sweep.study.labels import BLOCKS, MIXED, UNDERTRAINED, StudySetup, marks, name, row_label
from sae_sweep.study.published import published
from sae_sweep.study.shares import Share
from sae_sweep.study.table2 import Surplus, Table2Row
from sae_sweep.study.tables import CellResult, StudyTables

_MARKS = (
    f"{UNDERTRAINED} undertrained: too many features still match the dictionary that the SAE started from. "
    f"{MIXED} mixed: part of the run was trained with other numerics."
)


def study_section(
    folder: Path,
    found: FinishedRuns,
    parts: Sequence[tuple[StudyTables, StudySetup, StudyFiles]],
    answers: Sequence[Answer],
) -> Section:
    """The cells of the study that the sweep has, by kind of start, and its question.

    Args:
        folder: of the section, from which figures are named.
        found: the runs.
        parts: tables of the runs that start alike, and their files.
        answers: to whether the dataset or the seed moves more features.
    """
    tables: list[Table] = [_answers(answers)]
    figures: dict[str, str] = {}
    for one, setup, files in parts:
        starts = f" ({setup.starts})" if len(parts) > 1 else ""
        tables += [_table1(one, starts), _table2(one, starts)]
        for path, caption in _captions(files).items():
            figures[_relative(path, folder)] = caption + starts
    study = published()
    return Section(
        title="The study's tables",
        text=f"Published: {study.title}, {study.date:%Y-%m-%d}. {parts[0][1].sentence()}",
        runs=tuple(run.name for run in found.runs),
        tables=tuple(table for table in tables if table.rows),
        figures=figures,
    )


def _captions(files: StudyFiles) -> dict[Path, str]:
    return {
        files.figure1: "Figure 1: mean share of matched features by setting",
        files.table1_figure: "Table 1: measured and published",
        files.table2_figure: "Table 2: measured and published",
        files.figure13_figure: "Figure 13: matching between layers",
    }


def _relative(path: Path, folder: Path) -> str:
    return str(Path("..") / path.relative_to(folder.parent))


def _table1(tables: StudyTables, starts: str) -> Table:
    columns = (
        *("setting", "compared", "text", "measured (%)", "low", "high"),
        *("published (%)", "difference", "n", "marks"),
    )
    rows = tuple(_row1(result, result.measured) for result in tables.table1 if result.measured is not None)
    note = f"{len(rows)} of {len(tables.table1)} cells. Matched: best cosine above {tables.threshold:g}. "
    return Table(f"Table 1: share of features that have a match{starts}", columns, rows, note + _MARKS)


def _row1(result: CellResult, measured: Share) -> tuple[Cell, ...]:
    cell = result.cell
    shares = (measured.ratio, measured.low, measured.high)
    return (
        BLOCKS[cell.block],
        row_label(cell),
        name(cell.column) if cell.column else "both",
        *(100 * share for share in shares),
        cell.published,
        result.difference,
        float(measured.n),
        marks(result),
    )


def _table2(tables: StudyTables, starts: str) -> Table:
    columns = ("sizes", "text", "measured", "low", "high", "printed", "difference", "marks")
    rows = tuple(_row2(row, row.measured) for row in tables.table2 if row.measured is not None)
    title = f"Table 2: features of the larger dictionary that match beyond those of the smaller{starts}"
    return Table(title, columns, rows, f"{len(rows)} of {len(tables.table2)} cells, in features. {_MARKS}")


def _row2(row: Table2Row, measured: Surplus) -> tuple[Cell, ...]:
    values = (measured.features, measured.low, measured.high, row.printed, row.difference)
    numbers = (None if value is None else float(value) for value in values)
    return (row.row, name(row.column), *numbers, marks(row))


def _answers(answers: Sequence[Answer]) -> Table:
    columns = ("way", "runs", "dataset (%)", "seed (%)", "difference", "low", "high", "pairs", "so")
    rows = tuple(
        (
            one.way,
            one.where,
            *map(percent, (one.dataset.ratio, one.seed.ratio, one.difference, one.low, one.high)),
            f"{one.dataset.pairs} / {one.seed.pairs}",
            one.larger,
        )
        for one in answers
    )
    note = (
        "Share of features that have a match, over pairs that differ in the dataset and in the seed; "
        "difference in points, below 0 if the dataset moves more. As in the study: its cells, whatever their "
        "starts and budgets. Controlled: pairs that differ in nothing else, both directions, live features."
    )
    return Table("Does the dataset matter more than the seed?", columns, rows, note)
