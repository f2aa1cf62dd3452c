"""Frozen groups: files that tell a job in another process which runs to train."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig, ConfigError, build
from sae_sweep.plan import Plan
from sae_sweep.store import PlannedRun, SweepFolder, hold_sweep, read_record, unreadable, write_record

_REMEDY = "launch the sweep again"


@dataclass(frozen=True)
class _Frozen:
    """The content of a frozen group's file."""

    sweep: str
    sharers: int
    command: CommandConfig
    runs: list[dict[str, Any]]


class FrozenGroup(NamedTuple):
    """A group of runs that was written for a job to read."""

    number: int
    """Number of the group, which names its file."""
    run_ids: tuple[str, ...]


def freeze_group(plan: Plan, runs: Sequence[PlannedRun], sharers: int = 1) -> FrozenGroup:
    """Write runs of one group for a job to read.

    Args:
        plan: plan of the sweep.
        runs: runs for the job to train.
        sharers: number of concurrent jobs that share the memory of a machine.
    """
    command = plan.command.as_dict()
    frozen = {
        "sweep": plan.sweep,
        "sharers": sharers,
        "command": {key.name: command[key.name] for key in dataclasses.fields(CommandConfig)},
        "runs": [run.record() for run in runs],
    }
    with hold_sweep(plan.folder):  # which keeps other commands from taking the same number
        number = _next_number(plan.folder)
        write_record(_file(plan.folder, number), frozen)
    return FrozenGroup(number, tuple(run.run_id for run in runs))


def _next_number(folder: SweepFolder) -> int:
    """A number that no frozen group of the sweep has."""
    taken = [int(path.stem) for path in folder.jobs.glob("*.json") if path.stem.isdecimal()]
    return max(taken, default=-1) + 1


def read_group(folder: SweepFolder, number: int) -> tuple[Plan, int]:
    """Read the runs as they were frozen, and `sharers`; later changes of config files have no effect.

    Raises:
        SaeSweepError: naming the file and the remedy, if it is missing, damaged, or of another version.
    """
    path = _file(folder, number)
    try:
        frozen: _Frozen = build(_Frozen, read_record(path, _REMEDY))
        runs = tuple(PlannedRun.from_record(record, folder) for record in frozen.runs)
    except ConfigError as error:
        raise unreadable(path, error, _REMEDY) from error
    return Plan(frozen.sweep, folder, runs, frozen.command), frozen.sharers


def _file(folder: SweepFolder, number: int) -> Path:
    return folder.jobs / f"{number}.json"
