"""What a job in another process is given: the frozen runs of one group, as a file."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sae_sweep.config import config_from_dict
from sae_sweep.plan.plan import Plan, PlannedRun
from sae_sweep.store import SweepFolder, read_json, write_json

Work = Callable[[Path, int], object]
"""What a job does: called with the sweep's folder and the number of the frozen group."""


class Submitted(NamedTuple):
    """Where a job can be found."""

    id: str
    """For the cluster, and for people: `4711_3`, or the number of a worker's job."""
    log: Path
    """What the job wrote on standard error."""


@dataclass(frozen=True)
class Ticket:
    """A job that was submitted, and what for."""

    number: int
    """Of the frozen group."""
    id: str
    log: str
    run_ids: tuple[str, ...]


def task_command(task: str, folder: SweepFolder) -> str:
    """What to type for a task about a sweep; where its folder is, if that is not the usual place."""
    usual = folder.root.parent == Path("multirun").resolve()
    place = "" if usual else f" paths.output={folder.root.parent}"
    return f"python -m sae_sweep task={task} sweep={folder.root.name}{place}"


class Cluster(Protocol):
    """Where jobs are carried out."""

    poll_s: float
    """Seconds between two looks at the jobs."""
    lost_after_s: float
    """Seconds after which a job that ended without a result is lost."""
    word: str
    """What a job is called, for example `SLURM job`."""

    def submit(self, numbers: Sequence[int]) -> list[Submitted]:
        """One job for each frozen group. Raises SaeSweepError, with the cluster's own words, if refused."""

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        """How those jobs ended that will not go on; empty where the cluster cannot be asked just now."""

    def close(self) -> None:
        """All runs are settled: nothing is left to wait for but the jobs' own ends."""

    def leave(self, tickets: Sequence[Ticket]) -> str:
        """The command was told to stop: what becomes of its jobs, and what to do next."""


def freeze_group(plan: Plan, runs: Sequence[PlannedRun]) -> int:
    """Write runs of one group for a job to read; returns the number that the file is named for."""
    number = _free_number(plan.folder)
    frozen = [
        {
            "name": run.name,
            "id": run.run_id,
            "group": run.group,
            "grids": list(run.grids),
            "fingerprints": dict(run.fingerprints),
            "config": run.config.as_dict(),
        }
        for run in runs
    ]
    write_json(_file(plan.folder, number), {"sweep": plan.sweep, "runs": frozen})
    return number


def _free_number(folder: SweepFolder) -> int:
    """One that no other command has, nor takes at the same moment."""
    folder.jobs.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem) for path in folder.jobs.glob("*.json") if path.stem.isdigit()]
    return next(n for n in itertools.count(max(taken, default=-1) + 1) if _take(_file(folder, n)))


def _take(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def read_group(folder: SweepFolder, number: int) -> Plan:
    """The runs as they were frozen, whatever happened to the config files since.

    Raises:
        SaeSweepError: if the file is missing or damaged.
        ConfigError: naming the keys that this version does not know.
    """
    frozen = read_json(_file(folder, number))
    return Plan(frozen["sweep"], folder, tuple(_thaw(folder, run) for run in frozen["runs"]))


def _thaw(folder: SweepFolder, run: Mapping[str, Any]) -> PlannedRun:
    return PlannedRun(
        name=run["name"],
        run_id=run["id"],
        group=run["group"],
        config=config_from_dict(run["config"]),
        folder=folder.run(run["name"]),
        fingerprints=run["fingerprints"],
        grids=tuple(run["grids"]),
    )


def _file(folder: SweepFolder, number: int) -> Path:
    return folder.jobs / f"{number}.json"


def write_tickets(folder: SweepFolder, tickets: Sequence[Ticket]) -> None:
    """Replace what is remembered of the jobs of a sweep."""
    write_json(folder.jobs / "submitted.json", [dataclasses.asdict(ticket) for ticket in tickets])


def read_tickets(folder: SweepFolder) -> list[Ticket]:
    """The jobs of a sweep that earlier commands submitted; some may have ended long ago."""
    path = folder.jobs / "submitted.json"
    if not path.exists():
        return []
    return [Ticket(**{**one, "run_ids": tuple(one["run_ids"])}) for one in read_json(path)]
