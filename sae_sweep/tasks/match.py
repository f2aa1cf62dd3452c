"""Compares the finished SAEs of a sweep, after training or with `task=match sweep=NAME`."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from sae_sweep.activations import pick_device
from sae_sweep.analysis import Comparison, compare
from sae_sweep.config import CommandConfig, SaeSweepError
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import (
    ComparisonFiles,
    RunLine,
    files_text,
    short_names,
    terminal_summary,
    write_comparison,
    write_runs,
)
from sae_sweep.report.dose import found_again, write_dose_response
from sae_sweep.report.family_text import families_text
from sae_sweep.report.fine_tuning import gained, write_fine_tuning
from sae_sweep.signals import deferred
from sae_sweep.store import (
    DAMAGED,
    RunFolder,
    SweepFolder,
    find_sweep,
    hold_sweep,
    is_present,
    planned_run,
    read_metrics,
    read_plan,
    read_shown_status,
    shown_state,
)
from sae_sweep.tasks.dose import find_ladders
from sae_sweep.tasks.fine_tuning import find_domains
from sae_sweep.tasks.finished import Finished, read_finished, with_keys
from sae_sweep.tasks.followed import Followed, follow, steps
from sae_sweep.tasks.match_two import match_two
from sae_sweep.tasks.report import write_report
from sae_sweep.tasks.tracked import track_comparison, track_section

log = logging.getLogger(__name__)


def rematch(request: Request) -> int:
    """Run `task=match`: compare two SAEs, or the finished runs of `sweep` again.

    Returns the number of SAEs that are left out because a file of theirs is damaged.

    Raises:
        SaeSweepError: if there is no such sweep or SAE, or the two SAEs cannot be compared.
    """
    if request.command.a is not None:
        return match_two(request)
    return compare_finished(find_sweep(request.command), request.command, request.runs[0].config.device)


def compare_finished(
    folder: SweepFolder, command: CommandConfig, device: str, reported: Collection[str] = ()
) -> int:
    """Match every pair, follow features through all runs, write `analysis/`, track it, and print tables.

    Returns the number of runs that are left out because a file of theirs is damaged; those whose names are in
    `reported` were logged before.
    """
    lines: list[RunLine] = []
    damaged: dict[str, str] = {}
    found: list[Finished] = []
    planned_runs = read_plan(folder)["runs"]
    for run in planned_runs:
        name, files = run["name"], folder.run(run["name"])
        try:
            line = _run_line(name, files, run["id"])
            if line.status == "done":
                found.append(read_finished(planned_run(run, folder), command.matching.threshold))
                line = replace(line, start=found[-1].entry.start)
            lines.append(line)
        except SaeSweepError as error:
            if name not in reported:
                log.error("%s is left out: %s", name, error)
            lines.append(RunLine(name, DAMAGED))
            damaged[name] = f"{name} is left out of the comparison: {error}"
    with hold_sweep(folder):
        write_runs(folder)
    comparison, written, followed = None, None, None
    sections: dict[str, Path] = {}
    if len(found) < 2 and command.task == "match":
        old = "; what is in analysis/ is of an earlier comparison" if folder.matching.exists() else ""
        log.warning("%s: %d finished SAE, and a comparison needs two%s", folder.root, len(found), old)
    if len(found) > 1:
        found = with_keys(found)
        on = pick_device(device)
        with steps("matching", "pairs") as progress:
            entries = [one.entry for one in found]
            comparison = compare(entries, command.matching, device=on, progress=progress)
        with hold_sweep(folder):
            written = write_comparison(folder.matching, comparison)
        sections = _sections(folder, command, found, lines, comparison)
        followed = follow(folder, found, command, device)
        track_comparison(folder, command, comparison, written, lines, followed)
    shorts = short_names(planned_runs)
    lines = [replace(line, short=short) for line, short in zip(lines, shorts, strict=True)]
    show("\n\n".join([terminal_summary(lines, comparison), *_families_texts(followed)]) + "\n\n")
    opened = write_report(folder, damaged) | _worth_opening(folder, lines, written, followed)
    show(files_text(opened | sections) + "\n")
    return [line.status for line in lines].count(DAMAGED)


def _sections(
    folder: SweepFolder,
    command: CommandConfig,
    found: Sequence[Finished],
    lines: Sequence[RunLine],
    comparison: Comparison,
) -> dict[str, Path]:
    """Write and track the dose-response and fine-tuning of a sweep that has them; returns their tables."""
    ladders = find_ladders(found, comparison)
    domains = find_domains(found, {line.name: line.metrics for line in lines})
    with hold_sweep(folder), deferred():
        dose = write_dose_response(folder.dose_response, ladders, comparison.threshold)
        tuned = write_fine_tuning(folder.fine_tuning, domains)
    written = {}
    if dose is not None:
        track_section(folder, command, folder.dose_response, found_again(ladders))
        written["dose"] = dose
    if tuned is not None:
        track_section(folder, command, folder.fine_tuning, gained(domains))
        written["fine-tuning"] = tuned
    return written


def _families_texts(followed: Followed | None) -> list[str]:
    """Families of the hook with the most runs, and which others were looked at."""
    if followed is None or not followed.hooks:
        return [followed.truth] if followed is not None and followed.truth else []
    first, *others = followed.hooks
    text = families_text(first.results.families, first.results.rows)
    if others:
        labels = ", ".join(hook.label for hook in others)
        text = f"Hook {first.label} (the tables of {labels} are in analysis/families/)\n{text}"
    return [text, followed.truth] if followed.truth else [text]


def _worth_opening(
    folder: SweepFolder, lines: Sequence[RunLine], written: ComparisonFiles | None, followed: Followed | None
) -> dict[str, Path]:
    """Files that a person opens next, by what they show."""
    files = {}
    if written is not None:
        files = {
            "matrix": written.matrix_figure,
            "by key": written.keys_csv,
            "pairs": written.pairs_csv,
        }
    if followed is not None:
        files |= {"measures": followed.files.keys}
        for hook in followed.hooks[:1]:
            files[f"families {hook.label}".strip()] = hook.files.kinds
            if hook.examples is not None:
                files["examples"] = hook.examples.page
    files["runs"] = folder.runs_table
    failed = [line.name for line in lines if line.status == "failed"]
    return {**files, "a failed run": folder.run(failed[0]).log} if failed else files


def _run_line(name: str, folder: RunFolder, run_id: str) -> RunLine:
    status = read_shown_status(folder, run_id)
    known: dict[str, float] = {}
    if is_present(folder.metrics):
        values = read_metrics(folder, run_id).values
        known = {key: value for key, value in values.items() if value is not None}
    return RunLine(
        name=name,
        status=shown_state(status, folder),
        tokens=status.tokens,
        metrics=known,
        init_match=known.get("init_match"),
        mixed=bool(status.mixed),
    )
