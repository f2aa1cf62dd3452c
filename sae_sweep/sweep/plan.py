"""Which runs a sweep has, what they are called, and which of them share an LM pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config import Config, SaeSweepError, digest, run_name
from sae_sweep.storage import RunFolder, SweepFolder, write_json


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

    @property
    def config(self) -> Config:
        """Carries what all runs share (task, launcher, tracking, matching, paths)."""
        return self.runs[0].config

    def groups(self) -> list[list[PlannedRun]]:
        """The runs that are trained together: by LM pass, or one by one with `launcher=solo`."""
        groups: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            key = run.name if run.config.launcher.kind == "solo" else run.group
            groups.setdefault(key, []).append(run)
        return list(groups.values())

    def save(self) -> None:
        """Write `plan.json`."""
        runs = [
            {
                "name": run.name,
                "id": run.run_id,
                "group": run.group,
                "grids": list(run.grids),
                "config": run.config.as_dict(),
            }
            for run in self.runs
        ]
        write_json(self.folder.plan, {"sweep": self.sweep, "runs": runs})


def make_plan(
    configs: Sequence[Config],
    references: Sequence[Config],
    fingerprints: Callable[[Config], Mapping[str, str]],
) -> Plan:
    """Name the runs, merge those that are the same, and place the sweep.

    Args:
        configs: one a run, in order.
        references: for each, the defaults of its model, dataset, architecture and numerics.
        fingerprints: of the text and the LM that a config reads.

    Raises:
        SaeSweepError: if two different runs would share a name, or the folder holds another plan.
    """
    found: dict[str, tuple[str, Config, Mapping[str, str]]] = {}
    for config, reference in zip(configs, references, strict=True):
        prints = fingerprints(config)
        found.setdefault(config.run_id(prints), (run_name(config, reference), config, prints))
    sweep = _sweep_name(configs[0], list(found))
    folder = SweepFolder(Path(configs[0].paths.output).expanduser().resolve() / sweep)
    runs = tuple(
        PlannedRun(name, run_id, _group(config, prints), config, folder.run(name), prints)
        for run_id, (name, config, prints) in found.items()
    )
    _refuse_equal_names(runs)
    return Plan(sweep, folder, runs)


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
