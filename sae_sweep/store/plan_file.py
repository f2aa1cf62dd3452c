"""The status and plan files, as they are read."""

from collections.abc import Mapping
from typing import Any

from sae_sweep.config import SaeSweepError
from sae_sweep.store.atomic import read_json
from sae_sweep.store.paths import RunFolder, SweepFolder


def read_status(run: RunFolder) -> Mapping[str, Any]:
    """The run's status, or an empty mapping where it never started. Raises SaeSweepError if it is damaged."""
    if not run.status.exists():
        return {}
    status = read_json(run.status)
    if not isinstance(status, Mapping):
        raise SaeSweepError(f"cannot read {run.status}: not the status of a run; remove it to start over")
    return status


def read_plan(folder: SweepFolder) -> dict[str, Any]:
    """The plan of a sweep that is on disk.

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
