"""Which runs a sweep has, what they are called, and which of them share an LM pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config import Config, SaeSweepError, digest
from sae_sweep.plan.naming import run_name
from sae_sweep.store import RunFolder, SweepFolder, hold_sweep, read_plan, write_json


@dataclass(frozen=True)
class PlannedRun:
    """One SAE to train."""

    name: str
    """Folder name inside the sweep."""
    run_id: str
    """Hash of all that determines the weights."""
    group: str
    """Runs of equal group can share each LM pass."""
    config: Config
    folder: RunFolder
    fingerprints: Mapping[str, str]
    """What the run id holds beside the config: the text, the LM's weights and their dtype."""
    grids: tuple[str, ...] = ()
    """Names of the sub-grids of the experiment that ask for this run."""


@dataclass(frozen=True)
class Plan:
    """A sweep: its folder and its runs, in the order they were asked for."""

    sweep: str
    folder: SweepFolder
    runs: tuple[PlannedRun, ...]
    union: str | None = None
    """Names the union of grids that these runs were selected from; None where there are no grids."""

    @property
    def config(self) -> Config:
        """Carries what all runs share (task, launcher, tracking, matching, paths)."""
        return self.runs[0].config

    def groups(self) -> list[list[PlannedRun]]:
        """The runs that are trained together: by LM pass, at most `launcher.max_group`; or one by one."""
        groups: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            key = run.name if run.config.launcher.kind == "solo" else run.group
            groups.setdefault(key, []).append(run)
        most = self.config.launcher.max_group or len(self.runs)
        return [
            group[first : first + most] for group in groups.values() for first in range(0, len(group), most)
        ]

    def refuse_another(self) -> None:
        """Let a sweep grow or be narrowed, also one way after the other, but not be mixed with another one.

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
        """Write these runs into `plan.json`, beside the ones it already has.

        Raises:
            SaeSweepError: if it is damaged.
        """
        with hold_sweep(self.folder):
            self._save()

    def _save(self) -> None:
        on_disk = self._on_disk()
        runs = {run["id"]: run for run in on_disk.get("runs", [])}
        for run in self.runs:
            before = runs.get(run.run_id, {}).get("grids", [])
            runs[run.run_id] = {
                "name": run.name,
                "id": run.run_id,
                "group": run.group,
                "grids": list(dict.fromkeys([*before, *run.grids])),
                "config": run.config.as_dict(),
            }
        union = self.union or on_disk.get("union")
        plan = {"sweep": self.sweep, "union": union, "runs": list(runs.values())}
        write_json(self.folder.plan, plan)


def make_plan(
    configs: Sequence[Config],
    references: Sequence[Config],
    fingerprints: Callable[[Config], Mapping[str, str]],
    grids: Sequence[tuple[str, ...]] | None = None,
    union: str | None = None,
) -> Plan:
    """Name the runs, merge those that are the same, and place the sweep.

    Args:
        configs: one a run, in order.
        references: for each, the defaults of its model, dataset, architecture and numerics.
        fingerprints: of the text and the LM that a config reads.
        grids: for each, the names of the grids that ask for it; None: the command has no grids.
        union: names the union of grids that the runs were selected from.

    Raises:
        SaeSweepError: if two different runs would share a name.
    """
    found: dict[str, tuple[str, Config, Mapping[str, str]]] = {}
    asked_by: dict[str, dict[str, None]] = {}
    for config, reference, names in zip(configs, references, grids or [()] * len(configs), strict=True):
        prints = fingerprints(config)
        run_id = config.run_id(prints)
        found.setdefault(run_id, (run_name(config, reference), config, prints))
        asked_by.setdefault(run_id, {}).update(dict.fromkeys(names))
    sweep = _sweep_name(configs[0], list(found))
    folder = SweepFolder(Path(configs[0].paths.output).expanduser().resolve() / sweep)
    runs = tuple(
        PlannedRun(
            name, run_id, _group(config, prints), config, folder.run(name), prints, tuple(asked_by[run_id])
        )
        for run_id, (name, config, prints) in found.items()
    )
    _refuse_equal_names(runs)
    return Plan(sweep, folder, runs, union)


def _sweep_name(config: Config, run_ids: list[str]) -> str:
    return config.sweep or config.experiment or digest(sorted(run_ids))


def _group(config: Config, fingerprints: Mapping[str, str]) -> str:
    return digest({"stream": config.stream_identity(), **fingerprints})


def _refuse_equal_names(runs: Sequence[PlannedRun]) -> None:
    seen: dict[str, Any] = {}
    for run in runs:
        if run.name in seen:
            raise SaeSweepError(
                f"two different runs would both be called {run.name}: "
                "give their models or datasets distinct names (model.name, dataset.name)"
            )
        seen[run.name] = run
