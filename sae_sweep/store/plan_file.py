"""Planned runs, and `plan.json`, which lists those of a sweep."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from sae_sweep.config import ConfigError, RunConfig, plain_name, run_from_dict, typed
from sae_sweep.store.paths import RunFolder, SweepFolder
from sae_sweep.store.records import read_record, unreadable

_REMEDY = "move it away and launch the sweep again, or choose another sweep=NAME"


def without_start(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of what runs read: without that of the SAE from which one of them starts."""
    return {key: value for key, value in fingerprints.items() if key != "start"}


class RunRecord(TypedDict):
    """A run in `plan.json` and in a frozen group."""

    name: str
    id: str
    config: dict[str, Any]
    """As JSON values; `planned_run` checks them."""
    group: NotRequired[str]
    grids: NotRequired[list[str]]
    fingerprints: NotRequired[dict[str, str]]


class PlanRecord(TypedDict):
    """The content of `plan.json`, without what tasks keep in it."""

    sweep: str
    runs: list[RunRecord]
    union: NotRequired[str | None]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan: one SAE to train."""

    name: str
    """Folder name inside the sweep."""
    run_id: str
    """Hash of everything that determines the weights."""
    group: str
    """Id of the group; runs with equal ids can share each LM pass."""
    config: RunConfig
    folder: RunFolder
    fingerprints: Mapping[str, str]
    """Fingerprints of the text, the LM's weights, and the SAE of `init.sae`, which are part of the run id."""
    grids: tuple[str, ...] = ()
    """Names of the grids that contain this run."""

    def record(self) -> dict[str, Any]:
        """The run as JSON values, for `plan.json` and frozen groups."""
        return {
            "name": self.name,
            "id": self.run_id,
            "group": self.group,
            "grids": list(self.grids),
            "fingerprints": dict(self.fingerprints),
            "config": self.config.as_dict(),
        }

    @classmethod
    def from_record(cls, record: Any, sweep: SweepFolder) -> "PlannedRun":
        """Inverse of `record`. Raises ConfigError for other types and unknown keys."""
        run: dict[str, Any] = typed(record, RunRecord, "run")
        if problems := _name_problems([run["name"]]):
            raise ConfigError(problems)
        return cls(
            name=run["name"],
            run_id=run["id"],
            group=run.get("group", ""),
            config=run_from_dict(run["config"]),
            folder=sweep.run(run["name"]),
            fingerprints=run.get("fingerprints", {}),
            grids=tuple(run.get("grids", ())),
        )


def read_plan(folder: SweepFolder) -> dict[str, Any]:
    """Read `plan.json` of a sweep: a `PlanRecord`, and mappings that tasks keep in it.

    The runs' configs are not checked: `planned_run` does, so that a damaged one concerns its run only.

    Raises:
        SaeSweepError: naming the file and the remedy, if it is missing or damaged.
    """
    record = read_record(folder.plan, _REMEDY)
    ours = {key: value for key, value in record.items() if key in PlanRecord.__annotations__}
    kept = {key: value for key, value in record.items() if key not in ours}
    try:
        plan = typed(ours, PlanRecord, "plan")
        typed(kept, dict[str, dict[str, Any]], "plan")
        problems = _name_problems([run["name"] for run in plan["runs"]])
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        raise unreadable(folder.plan, error, _REMEDY) from error
    return record


def planned_run(record: Mapping[str, Any], folder: SweepFolder) -> PlannedRun:
    """A run of `read_plan`. Raises SaeSweepError, naming the file and the run, if its config is damaged."""
    try:
        return PlannedRun.from_record(record, folder)
    except ConfigError as error:
        named = ConfigError(f"the config of {record['name']}: {problem}" for problem in error.problems)
        raise unreadable(folder.plan, named, _REMEDY) from error


def _name_problems(names: list[str]) -> list[str]:
    """Names that are not those of different folders inside the sweep, one line each."""
    problems = [f"two runs are called {name}" for name, number in Counter(names).items() if number > 1]
    for name in names:
        plain_name(problems, "name", name)
    return problems
