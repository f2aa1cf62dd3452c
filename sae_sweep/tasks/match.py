"""Compares the finished SAEs of a sweep, after training or with `task=match sweep=NAME`."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sae_sweep.activations import pick_device
from sae_sweep.analysis import ComparisonEntry, compare
from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import (
    CommandConfig,
    RunConfig,
    SaeSweepError,
    digest,
    flatten,
)
from sae_sweep.config.swept import swept_keys
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import (
    ComparisonFiles,
    RunLine,
    files_text,
    read_densities,
    short_names,
    terminal_summary,
    write_comparison,
    write_runs,
)
from sae_sweep.saes import load_sae
from sae_sweep.store import (
    DAMAGED,
    RunFolder,
    SweepFolder,
    find_sweep,
    hold_sweep,
    is_present,
    planned_run,
    read_config,
    read_metrics,
    read_plan,
    read_shown_status,
    shown_state,
    unreadable,
)
from sae_sweep.tasks.tracked import track_comparison

log = logging.getLogger(__name__)


def rematch(request: Request) -> int:
    """Run `task=match`: compare the finished runs of `sweep` again, with this command's `matching` keys.

    Returns the number of runs that are left out because a file of theirs is damaged.

    Raises:
        SaeSweepError: if there is no such sweep.
    """
    return compare_finished(find_sweep(request.command), request.command, request.runs[0].config.device)


def compare_finished(
    folder: SweepFolder, command: CommandConfig, device: str, reported: Collection[str] = ()
) -> int:
    """Match every pair, write `analysis/matching/`, track the results, and print a table.

    Returns the number of runs that are left out because a file of theirs is damaged; those whose names are in
    `reported` were logged before.
    """
    lines: list[RunLine] = []
    found: list[tuple[RunConfig, ComparisonEntry]] = []
    contents: list[Mapping[str, str]] = []
    planned_runs = read_plan(folder)["runs"]
    for run in planned_runs:
        name, files = run["name"], folder.run(run["name"])
        try:
            line = _run_line(name, files, run["id"])
            if line.status == "done":
                planned = planned_run(run, folder)
                found.append(_finished(name, run["id"], files, planned.config, command.matching.threshold))
                contents.append(planned.fingerprints)
            lines.append(line)
        except SaeSweepError as error:
            if name not in reported:
                log.error("%s is left out: %s", name, error)
            lines.append(RunLine(name, DAMAGED))
    with hold_sweep(folder):
        write_runs(folder)
    comparison, written = None, None
    if len(found) > 1:
        keys = swept_keys(_labelled([config for config, _ in found], contents))
        entries = [dataclasses.replace(entry, keys=own) for own, (_, entry) in zip(keys, found, strict=True)]
        comparison = compare(entries, command.matching, device=pick_device(device))
        with hold_sweep(folder):
            written = write_comparison(folder.matching, comparison)
        track_comparison(folder, command, comparison, written, lines)
    shorts = short_names(planned_runs)
    lines = [dataclasses.replace(line, short=short) for line, short in zip(lines, shorts, strict=True)]
    opened = files_text(_worth_opening(folder, lines, written))
    show(f"{terminal_summary(lines, comparison)}\n\n{opened}\n")
    return [line.status for line in lines].count(DAMAGED)


def _worth_opening(
    folder: SweepFolder, lines: Sequence[RunLine], written: ComparisonFiles | None
) -> dict[str, Path]:
    """Files that a person opens next, by what they show."""
    files = {}
    if written is not None:
        files = {
            "matrix": written.matrix_figure,
            "by key": written.keys_csv,
            "pairs": written.pairs_csv,
        }
    files["runs"] = folder.runs_table
    failed = [line.name for line in lines if line.status == "failed"]
    return {**files, "a failed run": folder.run(failed[0]).log} if failed else files


def _labelled(configs: Sequence[RunConfig], contents: Sequence[Mapping[str, str]]) -> list[RunConfig]:
    """The configs with one label for each text and each model, whatever the commands called them."""
    texts = _labels([config.dataset.name for config in configs], [one.get("corpus") for one in contents])
    models = _labels([config.model.label for config in configs], [one.get("model") for one in contents])
    return [
        replace(config, dataset=replace(config.dataset, name=text), model=replace(config.model, name=model))
        for config, text, model in zip(configs, texts, models, strict=True)
    ]


def _labels(labels: Sequence[str], contents: Sequence[str | None]) -> list[str]:
    """The first label of each content, with its fingerprint if another content has it too."""
    firsts: dict[str, str] = {}
    for label, content in zip(labels, contents, strict=True):
        firsts.setdefault(content or label, label)
    taken = list(firsts.values())
    found = []
    for label, content in zip(labels, contents, strict=True):
        first = firsts[content or label]
        found.append(f"{first}-{digest(content)[:6]}" if content and taken.count(first) > 1 else first)
    return found


def _config(folder: RunFolder, planned: RunConfig) -> RunConfig:
    """Config of a run as it was trained, which names the same weights as the plan's."""
    config = read_config(folder)
    ours, theirs = flatten(config.identity()), flatten(planned.identity())
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        raise unreadable(
            folder.config,
            f"it differs from plan.json in {', '.join(differing)}",
            "remove it and launch the sweep again",
        )
    return config


def _finished(
    name: str, run_id: str, folder: RunFolder, planned: RunConfig, threshold: float
) -> tuple[RunConfig, ComparisonEntry]:
    """Config and SAE of a finished run; the swept keys are added when all runs are known."""
    config = _config(folder, planned)
    decoder = load_sae(folder.sae, run_id).W_dec.detach()
    metrics = read_metrics(folder, run_id)
    init_match = metrics.init_match
    if metrics.values.get("init_match_threshold") != threshold:
        init_match = match_to_own_start(decoder, config, run_id, threshold)
    return config, ComparisonEntry(
        name=name,
        keys={},
        decoder=decoder,
        init_match=init_match,
        densities=read_densities(folder.features, run_id, len(decoder)),
        mixed=bool(read_shown_status(folder, run_id).mixed),
    )


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
