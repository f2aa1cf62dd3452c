"""The plan of a sweep: its runs, their names, and the groups that share an LM pass."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig, RunConfig, SaeSweepError, digest, expanded, flatten, short_key
from sae_sweep.plan.labels import tell_apart
from sae_sweep.plan.naming import distinct_names, run_name
from sae_sweep.plan.resolve import resolve_dtypes, resolve_normalisation
from sae_sweep.store import (
    PlannedRun,
    RunFolder,
    SweepFolder,
    cache_folder,
    hold_sweep,
    is_present,
    planned_run,
    read_plan,
    state,
    without_start,
    write_record,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A sweep: its folder, its runs in the order requested, and the command that requests them."""

    sweep: str
    folder: SweepFolder
    runs: tuple[PlannedRun, ...]
    command: CommandConfig
    union: str | None = None
    """Digest of all runs of the grids that these were selected from; None for a command without grids."""

    def groups(self) -> list[list[PlannedRun]]:
        """Groups that share an LM pass, of at most `launcher.max_group` runs; single runs if fuse=false."""
        groups: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            groups.setdefault(run.group if self.command.fuse else run.name, []).append(run)
        most = self.command.launcher.max_group or len(self.runs)
        return [
            group[first : first + most] for group in groups.values() for first in range(0, len(group), most)
        ]

    def refuse_another(self) -> None:
        """Refuse a command that would mix two sweeps; a sweep may grow or be narrowed.

        Raises:
            SaeSweepError: naming the keys that differ, if a run's folder is another run's, or if `plan.json`
                lacks some of these runs and has others instead; or if it is damaged.
        """
        on_disk = self._on_disk()
        there = [planned_run(record, self.folder) for record in on_disk.get("runs", [])]
        by_name = {run.name: run for run in there}
        for run in self.runs:
            held = by_name.get(run.name, run)
            if held.run_id != run.run_id:
                raise SaeSweepError(
                    f"{run.folder.root} holds another run: {_differences(held, run)}; {_ELSEWHERE}"
                )
        if self.union is not None and on_disk.get("union") == self.union:
            return  # another selection among the same runs
        ids = {run.run_id for run in there}
        ours = {run.run_id for run in self.runs}
        others, new = ids - ours, [run for run in self.runs if run.run_id not in ids]
        if others and new:
            left_out = [run for run in there if run.run_id in others]
            near = min(left_out, key=lambda run: len(_differing_keys(run, new[0])))
            are = "is" if len(others) == 1 else "are"
            raise SaeSweepError(
                f"{self.folder.root} holds another plan: {len(others)} of its {len(ids)} runs {are} not in "
                f"this command ({near.name} is nearest: {_differences(near, new[0])}); {_ELSEWHERE}"
            )

    def _on_disk(self) -> dict[str, Any]:
        return read_plan(self.folder) if is_present(self.folder.plan) else {}

    def save(self) -> None:
        """Add these runs to `plan.json`, keeping those that it already lists.

        Raises:
            SaeSweepError: if it is damaged.
        """
        with hold_sweep(self.folder):
            on_disk = self._on_disk()
            runs = {run["id"]: run for run in on_disk.get("runs", [])}
            for run in self.runs:
                before = runs.get(run.run_id, {})
                record = {
                    **run.record(),
                    "grids": list(dict.fromkeys([*before.get("grids", []), *run.grids])),
                }
                if before and state(run.folder) == "done":  # as it was trained; it is evaluated as wanted now
                    evaluation = record["config"]["evaluation"]
                    record["config"] = {**before["config"], "evaluation": evaluation}
                runs[run.run_id] = record
            union = self.union or on_disk.get("union")
            plan = {"sweep": self.sweep, "union": union, **self.command.kept(), "runs": list(runs.values())}
            write_record(self.folder.plan, plan)


_ELSEWHERE = "choose sweep=NAME, or move the folder away"


def _differences(there: PlannedRun, here: PlannedRun) -> str:
    """Name what makes two runs differ, with both values: `k is 16 there and 32 here`."""
    ours, theirs = flatten(here.config.identity()), flatten(there.config.identity())
    lines = [
        f"{short_key(key)} is {theirs.get(key, 'not a key')} there and {ours.get(key, 'not a key')} here"
        for key in _differing_keys(there, here)
    ]
    if "model.dtype" in _differing_keys(there, here):
        began = there.config.model.dtype
        why = "an earlier version planned it" if began == "auto" else f"model.dtype={began} goes on with it"
        lines[-1] += f" (auto depends on the machine: {why})"
    prints = {"corpus": "text", "model": "model weights or tokenizer", "start": "SAE to start from"}
    lines += [
        f"its {what} {'are' if key == 'model' else 'is'} other"
        for key, what in prints.items()
        if there.fingerprints.get(key) != here.fingerprints.get(key)
    ]
    return ", ".join(lines) or "it was made by another version of sae_sweep"


def _differing_keys(there: PlannedRun, here: PlannedRun) -> list[str]:
    ours, theirs = flatten(here.config.identity()), flatten(there.config.identity())
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


class WantedRun(NamedTuple):
    """A run that a command requests; duplicates are merged later."""

    config: RunConfig
    reference: RunConfig
    """What its experiment gives without it, or the defaults; its name lists the differences."""
    grids: tuple[str, ...] = ()
    """Names of the grids that ask for it."""


@dataclass(frozen=True)
class Request:
    """A command's request, as a task receives it."""

    command: CommandConfig
    runs: Sequence[WantedRun]
    """Runs in order; a task that works on files gets a single run, for its keys."""
    union: str | None = None
    """Digest of all runs of the grids that these were selected from; None for a command without grids."""
    launch: Callable[[list[list[str]]], Any] | None = None
    """Runs jobs through one of Hydra's launchers, given one list of overrides per job; None: use the
    command's `launcher`."""


Fingerprints = Callable[[RunConfig], Mapping[str, str]]
"""Function from a run to the fingerprints of its text and LM, which are part of its id."""


def make_plan(request: Request, fingerprints: Fingerprints | None = None) -> Plan:
    """Name the runs, merge those that are the same, and place the sweep.

    Raises:
        SaeSweepError: if text or weights cannot be read.
    """
    command = request.command
    found: dict[str, PlannedRun] = {}
    grids: dict[str, dict[str, None]] = {}
    merged: dict[str, None] = {}
    for one, run in _planned(request, fingerprints or _fingerprints(cache_folder(command.paths.cache))):
        merged.update(_other_keys(found.setdefault(run.run_id, run), run))
        grids.setdefault(run.run_id, {}).update(dict.fromkeys(one.grids))
    if merged:
        log.info("runs that differ only in %s are one: that changes no weights", ", ".join(merged))
    sweep = command.sweep or command.experiment or digest(sorted(found))
    folder = SweepFolder(expanded(command.paths.output).resolve() / sweep)
    names = distinct_names({run_id: run.name for run_id, run in found.items()}, _names_on_disk(folder))
    runs = [
        replace(run, name=names[run_id], folder=folder.run(names[run_id]), grids=tuple(grids[run_id]))
        for run_id, run in found.items()
    ]
    return Plan(sweep, folder, tuple(runs), command, request.union)


def _planned(request: Request, fingerprints: Fingerprints) -> Iterator[tuple[WantedRun, PlannedRun]]:
    """Yield each wanted run with its id, its group, and a name that others may have, too."""
    prints = [fingerprints(one.config) for one in request.runs]
    labelled = tell_apart([(one.config, print_) for one, print_ in zip(request.runs, prints, strict=True)])
    of_start = functools.cache(_normalisation_of)
    for one, config, print_ in zip(request.runs, labelled, prints, strict=True):
        resolved = resolve_normalisation(_resolved(config, request), of_start)
        name = run_name(config, one.reference)
        group = digest({**resolved.pass_identity(), **without_start(print_)})
        run_id = resolved.run_id(print_)
        yield one, PlannedRun(name, run_id, group, resolved, RunFolder(Path(name)), print_)


def _other_keys(one: PlannedRun, other: PlannedRun) -> dict[str, None]:
    """Keys in which two configs of one run differ."""
    first, second = flatten(one.config.as_dict()), flatten(other.config.as_dict())
    return dict.fromkeys(key for key in {**first, **second} if first.get(key) != second.get(key))


def _resolved(config: RunConfig, request: Request) -> RunConfig:
    """The run with its dtypes fixed; Hydra's launchers train on machines that are not known yet."""
    return config if request.launch is not None else resolve_dtypes(config, request.command.launcher)


def _normalisation_of(start: str) -> str:
    from sae_sweep.saes import start_normalisation

    return start_normalisation(start)


def _names_on_disk(folder: SweepFolder) -> dict[str, str]:
    """Names by run id: a run keeps the one under which its sweep first planned it, whatever its labels."""
    return {run["id"]: run["name"] for run in read_plan(folder)["runs"]} if is_present(folder.plan) else {}


def _fingerprints(cache: Path) -> Fingerprints:
    """A cached fingerprint function: it reads each large file once per command."""
    from sae_sweep.activations import weights_fingerprint
    from sae_sweep.saes import start_fingerprint
    from sae_sweep.text import fingerprint

    corpus = functools.cache(lambda dataset: fingerprint(dataset, cache))
    weights = functools.cache(weights_fingerprint)
    start = functools.cache(start_fingerprint)

    def prints(run: RunConfig) -> dict[str, str]:
        known = {"corpus": corpus(run.dataset), "model": weights(run.model)}
        return known if run.init.sae is None else {**known, "start": start(run.init.sae)}

    return prints
