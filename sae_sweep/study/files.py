"""The study's tables on disk: CSV for machines, Markdown for people, and the figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from sae_sweep.report.files import write_csv
from sae_sweep.report.style import save
from sae_sweep.store import write_text
from sae_sweep.study.answers import Answer
from sae_sweep.study.figures import figure1, figure13, table1_figure, table2_figure
from sae_sweep.study.labels import StudySetup
from sae_sweep.study.markdown import (
    answers_markdown,
    figure13_markdown,
    runs_markdown,
    table1_markdown,
    table2_markdown,
    table2_runs_markdown,
)
from sae_sweep.study.table2 import Table2Row
from sae_sweep.study.tables import CellResult, StudyTables

Record = Mapping[str, Any]
"""One row of a CSV file: column -> value."""


class StudyFiles(NamedTuple):
    """Files with the tables and figures of one kind of runs; every .csv has an .md beside it."""

    table1: Path
    table2: Path
    figure13: tuple[Path, ...]
    """One per k."""
    table1_figure: Path
    table2_figure: Path
    figure13_figure: Path
    figure1: Path


def write_study_tables(
    tables_folder: Path, figures_folder: Path, tables: StudyTables, setup: StudySetup
) -> StudyFiles:
    """Write all tables and figures of one kind of runs.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    records = [cell_record(result) for result in tables.table1]
    text = table1_markdown(tables, setup) + runs_markdown(tables.table1)
    return StudyFiles(
        table1=_write(tables_folder / "table1.csv", records, text),
        table2=_write(
            tables_folder / "table2.csv",
            [table2_record(row) for row in tables.table2],
            table2_markdown(tables, setup) + table2_runs_markdown(tables.table2),
        ),
        figure13=tuple(
            _write(
                tables_folder / f"figure13_k{k}.csv",
                [cell_record(result) for result in results],
                figure13_markdown(tables, k, setup),
            )
            for k, results in tables.figure13.items()
        ),
        table1_figure=save(table1_figure(tables, setup), figures_folder / "table1.png"),
        table2_figure=save(table2_figure(tables, setup), figures_folder / "table2.png"),
        figure13_figure=save(figure13(tables, setup), figures_folder / "figure13.png"),
        figure1=save(figure1(tables, setup), figures_folder / "figure1.png"),
    )


def write_answers(folder: Path, answers: Sequence[Answer], tables: StudyTables) -> Path:
    """Write `dataset_vs_seed.csv` and `.md`; returns the .csv. The text states the limits of `tables`."""
    records = [answer_record(answer) for answer in answers]
    return _write(folder / "dataset_vs_seed.csv", records, answers_markdown(answers, tables))


def _write(path: Path, records: Sequence[Record], text: str) -> Path:
    """Write the records as CSV, and `text` as Markdown beside it."""
    write_csv(path, pyarrow.Table.from_pylist(records))
    write_text(path.with_suffix(".md"), text)
    return path


def cell_record(result: CellResult) -> Record:
    """Record of a cell of Table 1 or Figure 13; shares in per cent, None if unknown."""
    cell, measured, counted, sought_in = result.cell, result.measured, result.counted, result.sought_in
    return {
        "block": cell.block,
        "row": cell.row,
        "column": cell.column,
        "counted_run": counted and counted.name,
        "sought_in_run": sought_in and sought_in.name,
        "counted": str(cell.counted),
        "sought_in": str(cell.sought_in),
        "measured_percent": measured and 100 * measured.ratio,
        "low_percent": measured and 100 * measured.low,
        "high_percent": measured and 100 * measured.high,
        "n": measured and measured.n,
        "live_percent": measured and percent(measured.live_ratio),
        "n_live": measured and measured.n_live,
        "published_percent": cell.published,
        "difference_points": result.difference,
        "init_match_counted_percent": counted and 100 * counted.init_match,
        "init_match_sought_in_percent": sought_in and 100 * sought_in.init_match,
        "undertrained": result.undertrained,
        "mixed": result.mixed,
        "tokens_counted": counted and counted.tokens,
        "tokens_sought_in": sought_in and sought_in.tokens,
        "missing": "; ".join(result.missing),
        "differs": "; ".join(result.differs),
        "footnotes": " ".join(note.mark for note in result.footnotes),
        "choice": cell.choice,
    }


def table2_record(row: Table2Row) -> Record:
    """Record of a cell of Table 2, in features."""
    measured, large, small = row.measured, row.large, row.small
    return {
        "row": row.row,
        "column": row.column,
        "large_run": large and large.name,
        "small_run": small and small.name,
        "measured_features": measured and measured.features,
        "low_features": measured and measured.low,
        "high_features": measured and measured.high,
        "measured_percent_of_small": measured and 100 * measured.features / measured.small,
        "live_features": measured and measured.live,
        "n_large": measured and measured.large,
        "n_small": measured and measured.small,
        "printed_features": row.printed,
        "difference_features": row.difference,
        "recomputed_features": row.recomputed,
        "printed_verdict": row.verdict,
        "init_match_large_percent": large and 100 * large.init_match,
        "init_match_small_percent": small and 100 * small.init_match,
        "undertrained": row.undertrained,
        "mixed": row.mixed,
        "tokens_large": large and large.tokens,
        "tokens_small": small and small.tokens,
        "missing": "; ".join(row.missing),
        "differs": "; ".join(row.differs),
        "footnotes": " ".join(note.mark for note in row.footnotes),
        "choice": row.choice,
    }


def answer_record(answer: Answer) -> Record:
    """Record of one answer to whether the dataset or the seed moves more features."""
    return {
        "way": answer.way,
        "where": answer.where,
        "dataset_percent": percent(answer.dataset.ratio),
        "seed_percent": percent(answer.seed.ratio),
        "difference_points": percent(answer.difference),
        "low_points": percent(answer.low),
        "high_points": percent(answer.high),
        "dataset_pairs": answer.dataset.pairs,
        "seed_pairs": answer.seed.pairs,
        "undertrained_dataset_pairs": answer.dataset.undertrained,
        "undertrained_seed_pairs": answer.seed.undertrained,
        "mixed_dataset_pairs": answer.dataset.mixed,
        "mixed_seed_pairs": answer.seed.mixed,
        "larger": answer.larger,
        "settings": "; ".join(answer.settings),
        "settings_left_out": answer.settings_left_out,
        "missing": "; ".join((*answer.dataset.missing, *answer.seed.missing)),
    }


def percent(share: float | None) -> float | None:
    """A share in per cent; None if unknown."""
    return None if share is None else 100 * share
