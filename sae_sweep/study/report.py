"""`task=report sweep=NAME`: the page of a sweep, with the study's tables where the sweep has their cells."""

import logging
import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple, cast

from sae_sweep.activations import pick_device
from sae_sweep.config import CommandConfig, SaeSweepError
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report.formatting import TextTable
from sae_sweep.report.page.sections import write_section
from sae_sweep.store import SweepFolder, find_sweep, hold_sweep
from sae_sweep.study.answers import OWN_STARTS, SHARED_STARTS, Answer, dataset_or_seed
from sae_sweep.study.config import StudyCommand
from sae_sweep.study.files import StudyFiles, cell_record, write_answers, write_study_tables
from sae_sweep.study.finished_runs import FinishedRuns, finished_runs
from sae_sweep.study.labels import StudySetup, marks
from sae_sweep.study.places import write_places
from sae_sweep.study.runs import StudyRun
from sae_sweep.study.section import study_section
from sae_sweep.study.shares import Shares
from sae_sweep.study.tables import StudyTables, study_tables
from sae_sweep.tasks.report import show_report
from sae_sweep.tracking import open_comparison_sink

log = logging.getLogger(__name__)

_LOG_EVERY = 20
"""Pairs between two lines of progress."""
_FOLDERS = {SHARED_STARTS: "shared", OWN_STARTS: "own"}


def report(request: Request) -> int:
    """Write `report.html`, and the study's tables and figures if the sweep has any of its cells.

    Returns how many runs are damaged.

    Raises:
        SaeSweepError: if there is no such sweep, or its plan is damaged.
    """
    command, device = cast(StudyCommand, request.command), request.runs[0].config.device
    folder = find_sweep(command)
    found = finished_runs(folder, command.matching.threshold, command.study)
    log.info("%s: %d of %d runs are finished", folder.root, len(found.runs), found.planned)
    shares = _shares(command, device)
    by_starts = _by_starts(found.runs)
    tables = {starts: study_tables(runs, shares) for starts, runs in by_starts.items()}
    parts: list[_Part] = []
    if any(result.measured for one in tables.values() for result in one.cells):
        with hold_sweep(folder):
            parts = [
                _write_part(folder, found, by_starts[starts], starts, one) for starts, one in tables.items()
            ]
            answers = _answers(folder, command, found, shares, _shares(command, device))
            write_answers(folder.tables, answers, parts[0].tables)
            write_places(folder)
            section = study_section(folder.tables, found, parts, answers)
            write_section(folder.tables, section)
        _track(folder, command, found, parts, answers)
        show(f"{_summary(found, answers)}\n\n")
    damaged = {name: f"{name}: files of its SAE or its evaluation are damaged" for name in found.damaged}
    show_report(folder, {"study's tables": folder.tables} if parts else {}, damaged)
    return len(found.damaged)


class _Part(NamedTuple):
    """The tables of all runs that start alike."""

    tables: StudyTables
    setup: StudySetup
    files: StudyFiles


def _shares(command: CommandConfig, device: str) -> Shares:
    def progress(pairs: int) -> None:
        if pairs % _LOG_EVERY == 0:
            log.info("%d pairs of SAEs matched", pairs)

    return Shares(command.matching, device=pick_device(device), progress=progress)


def _by_starts(runs: Sequence[StudyRun]) -> dict[str, list[StudyRun]]:
    """Runs with shared starts and runs with own starts, which get separate tables."""
    kinds: dict[str, list[StudyRun]] = {}
    for run in sorted(runs, key=lambda run: not run.init_shared):
        kinds.setdefault(SHARED_STARTS if run.init_shared else OWN_STARTS, []).append(run)
    return kinds


def _write_part(
    folder: SweepFolder, found: FinishedRuns, runs: Sequence[StudyRun], starts: str, tables: StudyTables
) -> _Part:
    for note in tables.notes:
        log.warning("%s", note)
    setup = StudySetup(
        sweep=folder.root.name,
        starts=starts,
        models=(found.config.model.label,),
        stand_ins=found.study.datasets,
        l0_scale=found.study.l0_scale,
        tokens=sorted({run.tokens for run in runs}),
        left_out=found.left_out,
    )
    below = _FOLDERS[starts] if found.both_starts else "."
    files = write_study_tables(folder.tables / below, folder.figures / below, tables, setup)
    return _Part(tables, setup, files)


def _answers(
    folder: SweepFolder, command: CommandConfig, found: FinishedRuns, shares: Shares, paper_shares: Shares
) -> tuple[Answer, ...]:
    """Answers for this sweep, and for the sweep that `study.paper` names if there is one."""
    name = found.study.paper
    sibling = SweepFolder(folder.root.parent / name)
    return dataset_or_seed(
        found.runs,
        shares,
        sweep=folder.root.name,
        paper=() if name == folder.root.name else _paper_runs(sibling, command.matching.threshold),
        paper_shares=paper_shares,
        paper_sweep=name,
    )


def _paper_runs(paper: SweepFolder, threshold: float) -> tuple[StudyRun, ...]:
    """Finished runs of the paper's sweep; none if there is no such sweep, or its plan is damaged."""
    if not paper.plan.exists():
        return ()
    try:
        return finished_runs(paper, threshold).runs
    except SaeSweepError as error:
        log.warning("%s is left out of the answers: %s", paper.root, error)
        return ()


def _summary(found: FinishedRuns, answers: Sequence[Answer]) -> str:
    """The study's question, answered in each way, for standard output."""
    table = TextTable(["runs", "way", "dataset", "seed", "so"], left={0, 1, 4})
    for one in answers:
        shares = ("-" if ratio is None else f"{ratio:.1%}" for ratio in (one.dataset.ratio, one.seed.ratio))
        table.add([one.where, one.way, *shares, one.larger + marks(one, " ")])
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    lines = ["Does the dataset matter more than the seed? (share of features that have a match)"]
    return "\n".join(
        [*textwrap.wrap(lines[0], width), *table.lines(width, drop=(1,)), *_weakest(found.runs, width)]
    )


def _weakest(runs: Sequence[StudyRun], width: int) -> list[str]:
    """Lowest explained variance: a comparison is worth no more than its weaker SAE."""
    known = [(run.explained_variance, run) for run in runs if run.explained_variance is not None]
    lines = []
    if known:
        value, run = min(known, key=lambda pair: pair[0])
        lines.append(
            f"Lowest explained variance of any finished run: {value:.3f} ({run.name}, {run.tokens:,} tokens)"
        )
    if len(known) < len(runs):
        lines.append(f"Without explained variance: {len(runs) - len(known)} of {len(runs)} finished runs")
    return [part for line in lines for part in textwrap.wrap(line, width)]


def _track(
    folder: SweepFolder,
    command: CommandConfig,
    found: FinishedRuns,
    parts: Sequence[_Part],
    answers: Sequence[Answer],
) -> None:
    """Send the tables and figures to W&B."""
    sink = open_comparison_sink(folder, command, [run.name for run in found.runs], what="report")
    for part in parts:
        prefix = f"{_FOLDERS[part.setup.starts]}/" if found.both_starts else ""
        records = [cell_record(result) for result in part.tables.table1]
        sink.table(f"{prefix}table1", list(records[0]), [list(record.values()) for record in records])
        files = part.files
        for path in (files.table1_figure, files.table2_figure, files.figure13_figure, files.figure1):
            sink.image(f"{prefix}figures/{path.stem}", path)
    trained = [one for one in answers if not one.undertrained]
    differences = {f"dataset_minus_seed/{one.way}, {one.where}": one.difference for one in trained}
    sink.summary({name: value for name, value in differences.items() if value is not None})
    sink.finish()
