"""Planned runs, and `plan.json`, which lists those of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_sweep.config import RunConfig, SaeSweepError, run_from_dict
from sae_sweep.store.atomic import read_json
from sae_sweep.store.paths import RunFolder, SweepFolder


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
    """Fingerprints of the text and the LM's weights, which are part of the run id."""
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
    def from_record(cls, record: Mapping[str, Any], sweep: SweepFolder) -> "PlannedRun":
        """Inverse of `record`. Raises ConfigError for unknown keys."""
        return cls(
            name=record["name"],
            run_id=record["id"],
            group=record["group"],
            config=run_from_dict(record["config"]),
            folder=sweep.run(record["name"]),
            fingerprints=record["fingerprints"],
            grids=tuple(record["grids"]),
        )


def read_plan(folder: SweepFolder) -> dict[str, Any]:
    """Read `plan.json` of a sweep.

    Raises:
        SaeSweepError: naming the file, if it is missing or damaged.
    """
    plan = read_json(folder.plan)
    try:
        if all(run["id"] and run["name"] and isinstance(run["config"], Mapping) for run in plan["runs"]):
            return dict(plan)
    except (KeyError, TypeError):
        pass
    raise SaeSweepError(
        f"cannot read {folder.plan}: not a plan of this program; move it away, or choose sweep=NAME"
    )
