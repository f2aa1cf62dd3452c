"""The plan of a sweep: its runs, their names, and the groups that share an LM pass."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig, RunConfig, SaeSweepError, digest
from sae_sweep.plan.naming import run_name
from sae_sweep.store import PlannedRun, SweepFolder, cache_folder, hold_sweep, read_plan, write_json


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
            SaeSweepError: if `plan.json` lacks some of these runs and has others instead, or is damaged.
        """
        on_disk = self._on_disk()
        if self.union is not None and on_disk.get("union") == self.union:
            return  # another selection among the same runs
        known = {run["id"]: run["name"] for run in on_disk.get("runs", [])}
        ours = {run.run_id: run.name for run in self.runs}
        others = known.keys() - ours.keys()
        if not others or not ours.keys() - known.keys():
            return
        are = "is" if len(others) == 1 else "are"
        changed = sorted({known[run_id] for run_id in others} & set(ours.values()))
        hint = f" ({changed[0]} is, but with other text, model weights or versions)" if changed else ""
        raise SaeSweepError(
            f"{self.folder.root} holds another plan: {len(others)} of its {len(known)} runs {are} "
            f"not in this command{hint}; choose sweep=NAME, or move the folder away"
        )

    def _on_disk(self) -> dict[str, Any]:
        return read_plan(self.folder) if self.folder.plan.exists() else {}

    def save(self) -> None:
        """Add these runs to `plan.json`, keeping those that it already lists.

        Raises:
            SaeSweepError: if it is damaged.
        """
        with hold_sweep(self.folder):
            on_disk = self._on_disk()
            runs = {run["id"]: run for run in on_disk.get("runs", [])}
            for run in self.runs:
                before = runs.get(run.run_id, {}).get("grids", [])
                grids = list(dict.fromkeys([*before, *run.grids]))
                runs[run.run_id] = {**run.record(), "grids": grids}
            union = self.union or on_disk.get("union")
            plan = {"sweep": self.sweep, "union": union, **self.command.kept(), "runs": list(runs.values())}
            write_json(self.folder.plan, plan)


class WantedRun(NamedTuple):
    """A run that a command requests; duplicates are merged later."""

    config: RunConfig
    reference: RunConfig
    """Defaults of its model, dataset, architecture and numerics; its name lists the differences."""
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
        SaeSweepError: if two different runs would share a name, or text or weights cannot be read.
    """
    command = request.command
    fingerprints = fingerprints or _fingerprints(cache_folder(command.paths.cache))
    found: dict[str, tuple[WantedRun, Mapping[str, str]]] = {}
    grids: dict[str, dict[str, None]] = {}
    for one in request.runs:
        prints = fingerprints(one.config)
        run_id = one.config.run_id(prints)
        found.setdefault(run_id, (one, prints))
        grids.setdefault(run_id, {}).update(dict.fromkeys(one.grids))
    sweep = command.sweep or command.experiment or digest(sorted(found))
    folder = SweepFolder(Path(command.paths.output).expanduser().resolve() / sweep)
    runs = []
    for run_id, (one, prints) in found.items():
        name = run_name(one.config, one.reference)
        group = digest({"stream": one.config.stream_identity(), **prints})
        runs.append(
            PlannedRun(name, run_id, group, one.config, folder.run(name), prints, tuple(grids[run_id]))
        )
    _refuse_equal_names(runs)
    return Plan(sweep, folder, tuple(runs), command, request.union)


def _fingerprints(cache: Path) -> Fingerprints:
    """A cached fingerprint function: it reads each large file once per command."""
    from sae_sweep.activations import weights_fingerprint
    from sae_sweep.text import fingerprint

    corpus = functools.cache(lambda dataset: fingerprint(dataset, cache))
    weights = functools.cache(weights_fingerprint)
    return lambda run: {"corpus": corpus(run.dataset), "model": weights(run.model)}


def _refuse_equal_names(runs: Sequence[PlannedRun]) -> None:
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise SaeSweepError(
                f"two different runs would both be called {name}: "
                "give their models or datasets distinct names (model.name, dataset.name)"
            )
