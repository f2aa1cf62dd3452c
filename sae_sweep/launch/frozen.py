"""Frozen groups: the files from which a job in another process takes its runs."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sae_sweep.config import CommandConfig, config_from_plain
from sae_sweep.plan import Plan
from sae_sweep.store import PlannedRun, SweepFolder, read_json, write_json


class FrozenGroup(NamedTuple):
    """Runs that were written for a job to read."""

    number: int
    """The file is named for it."""
    run_ids: tuple[str, ...]


def freeze_group(plan: Plan, runs: Sequence[PlannedRun], sharers: int = 1) -> FrozenGroup:
    """Write runs of one group for a job to read.

    Args:
        plan: of the sweep.
        runs: those that the job trains.
        sharers: jobs at once that divide the memory of a machine.
    """
    number = _free_number(plan.folder)
    command = plan.command.as_dict()
    frozen = {
        "sweep": plan.sweep,
        "sharers": sharers,
        "command": {key.name: command[key.name] for key in dataclasses.fields(CommandConfig)},
        "runs": [run.record() for run in runs],
    }
    write_json(_file(plan.folder, number), frozen)
    return FrozenGroup(number, tuple(run.run_id for run in runs))


def _free_number(folder: SweepFolder) -> int:
    """A number that no other command has, nor takes at the same moment."""
    folder.jobs.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem) for path in folder.jobs.glob("*.json") if path.stem.isdigit()]
    return next(n for n in itertools.count(max(taken, default=-1) + 1) if _create(_file(folder, n)))


def _create(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def read_group(folder: SweepFolder, number: int) -> tuple[Plan, int]:
    """The runs as they were frozen, whatever happened to the config files since, and `sharers`.

    Raises:
        SaeSweepError: if the file is missing or damaged.
        ConfigError: naming the keys that this version does not know.
    """
    frozen = read_json(_file(folder, number))
    runs = tuple(PlannedRun.from_record(record, folder) for record in frozen["runs"])
    command = config_from_plain(CommandConfig, frozen["command"])
    return Plan(frozen["sweep"], folder, runs, command), frozen["sharers"]


def _file(folder: SweepFolder, number: int) -> Path:
    return folder.jobs / f"{number}.json"
