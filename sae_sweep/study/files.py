"""The study's tables on disk: CSV for machines, Markdown for people, and the figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow

from sae_sweep.report.files import write_csv
from sae_sweep.report.style import save
from sae_sweep.store import write_text
from sae_sweep.study.answers import Answer
from sae_sweep.study.dot_figures import figure1, table1_figure, table2_figure
from sae_sweep.study.layer_figure import layer_figure
from sae_sweep.study.markdown import (
    answers_markdown,
    figure13_markdown,
    runs_markdown,
    table1_markdown,
    table2_markdown,
    table2_runs_markdown,
)
from sae_sweep.study.records import Record, answer_record, cell_record, table2_record
from sae_sweep.study.tables import StudyTables
from sae_sweep.study.words import StudySetup


class StudyFiles(NamedTuple):
    """Where the tables and figures of one kind of runs are. Every .csv has an .md beside it."""

    table1: Path
    table2: Path
    figure13: tuple[Path, ...]
    """One for each k."""
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
        figure13_figure=save(layer_figure(tables, setup), figures_folder / "figure13.png"),
        figure1=save(figure1(tables, setup), figures_folder / "figure1.png"),
    )


def write_answers(folder: Path, answers: Sequence[Answer], tables: StudyTables) -> Path:
    """Write `dataset_vs_seed.csv` and `.md`; returns the former. The limits stated are those of `tables`."""
    records = [answer_record(answer) for answer in answers]
    return _write(folder / "dataset_vs_seed.csv", records, answers_markdown(answers, tables))


def _write(path: Path, records: Sequence[Record], text: str) -> Path:
    """Write the records as CSV, and `text` as Markdown beside it."""
    write_csv(path, pyarrow.Table.from_pylist(records))
    write_text(path.with_suffix(".md"), text)
    return path
