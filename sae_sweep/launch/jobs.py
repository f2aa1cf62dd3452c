"""Launcher that submits each group as a job, and follows the jobs through the runs' files."""

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sae_sweep.config import ConfigError, SaeSweepError, typed
from sae_sweep.config.pasted import override, pasted
from sae_sweep.launch.following import Following
from sae_sweep.launch.frozen import FrozenGroup, freeze_group
from sae_sweep.logs import show
from sae_sweep.plan import Plan
from sae_sweep.signals import Interrupted, StopRequest, at_once, blocked
from sae_sweep.store import (
    DAMAGED,
    PlannedRun,
    SweepFolder,
    hold,
    hold_sweep,
    is_complete,
    is_present,
    prepare,
    read_json,
    read_record,
    read_status,
    set_state,
    state,
    unfinished,
    unreadable,
    write_record,
)

log = logging.getLogger(__name__)

_REMEDY = "remove it once no job of this sweep runs"
_LOOK_EVERY_S = 1.0
"""Seconds between two looks at the progress of jobs."""


@dataclass(frozen=True)
class Ticket:
    """A submitted job, and the runs it trains."""

    number: int
    """Number of the frozen group."""
    id: str
    """Job id as the cluster shows it: `4711_3`, or the number of a worker's job."""
    log: str
    """File with the job's standard error."""
    run_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the id can be given to the cluster's commands. Raises ConfigError."""
        if not re.fullmatch(r"\w+", self.id, re.ASCII):
            raise ConfigError([f"id={self.id!r}: no job id"])


class Stopped(str):
    """How a job ended that a signal stopped once its runs were saved: they are not lost."""


class Cluster(Protocol):
    """A system that runs jobs."""

    word: str
    """Name for a job in messages, for example `SLURM job`."""
    poll_s: float
    """Seconds between two polls of the jobs."""
    lost_after_s: float
    """Seconds after which a job that ended without a result counts as lost."""
    sharers: int
    """Number of concurrent jobs that share the memory of a machine."""

    def active(self) -> list[Ticket]:
        """Jobs that earlier commands submitted for this sweep and that have not ended."""
        ...

    def submit(self, groups: Sequence[FrozenGroup]) -> list[Ticket]:
        """Submit one job per frozen group. Raises SaeSweepError, with the cluster's message, if refused."""
        ...

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Map each job that has ended for good to how it ended; empty while the cluster does not answer.

        It is a `Stopped` text for a job that a signal stopped once its runs were saved.
        """
        ...

    def why_waiting(self, ids: Sequence[str]) -> str:
        """Why jobs have not started, in the cluster's words; empty if nothing is known."""
        ...

    def close(self) -> None:
        """Wait for the jobs' processes to end, once all runs are finished."""

    def leave(self, tickets: Sequence[Ticket]) -> str:
        """Stop following the jobs, and end those of this process; returns a hint what to do next."""
        ...


class Jobs:
    """Submits one job per group that has runs left to train, and waits for all jobs of the sweep.

    Jobs of earlier commands that have not ended are waited for too. With `launcher.detach` it does not wait.
    """

    def __init__(self, open_cluster: Callable[[Plan], Cluster]) -> None:
        self._open_cluster = open_cluster

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        with at_once():  # may import torch
            cluster = self._open_cluster(plan)
        tickets: list[Ticket] = []
        try:
            with stop.deferred(), blocked():  # a Ctrl-C must reach neither this process nor sbatch
                tickets += submit(plan, cluster)
            if plan.command.launcher.detach:
                _print_how_to_follow(plan, tickets, cluster)
                return False
            if tickets:
                log.info("check progress with: %s", task_command("status", plan.folder))
            _Watch(plan, cluster, tickets).wait()
            cluster.close()
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signum, cluster.leave(tickets)) from None
        except BaseException:
            cluster.leave(tickets)
            raise
        return True


def submit(plan: Plan, cluster: Cluster) -> list[Ticket]:
    """Freeze and submit the groups left to train; returns all jobs of the sweep, earlier ones included.

    Raises:
        SaeSweepError: if a folder is in use or holds another run, or the cluster refuses; the runs then fail.
    """
    our_ids = {run.run_id for run in plan.runs}
    active = [ticket for ticket in cluster.active() if our_ids & set(ticket.run_ids)]
    taken = {run_id for ticket in active for run_id in ticket.run_ids}
    ours = [run for run in plan.runs if run.run_id not in taken]  # the others' folders belong to their jobs
    waiting = [run for run in prepare(ours) if not is_complete(run)]
    plan.save()
    groups = [rest for group in plan.groups() if (rest := [run for run in group if run in waiting])]
    log.info(
        "%s: %d runs, %d already done, %d in jobs that go on; %d new jobs",
        *(
            pasted(plan.folder.root),
            len(plan.runs),
            len([run for run in plan.runs if is_complete(run)]),
            len(plan.runs) - len(ours),
            len(groups),
        ),
    )
    return active + (_submit_groups(plan, cluster, groups) if groups else [])


def _submit_groups(plan: Plan, cluster: Cluster, groups: Sequence[Sequence[PlannedRun]]) -> list[Ticket]:
    frozen = [freeze_group(plan, group, cluster.sharers) for group in groups]
    try:
        tickets = cluster.submit(frozen)
    except SaeSweepError as error:
        for group in groups:
            mark_lost(group, str(error))
        raise
    for ticket in tickets:
        log.info("%s %s: %d runs, log %s", cluster.word, ticket.id, len(ticket.run_ids), pasted(ticket.log))
    return tickets


def _print_how_to_follow(plan: Plan, tickets: Sequence[Ticket], cluster: Cluster) -> None:
    if tickets:
        show(f"{plan.sweep}: {len(tickets)} {cluster.word}s; {cluster.leave(tickets)}\n")
        show(f"when they are done, compare with `{task_command('match', plan.folder)}`\n")
    else:
        show(f"{plan.sweep}: nothing left to train\n")


def task_command(task: str, folder: SweepFolder) -> str:
    """Command line of a task on a sweep, with `paths.output` unless it is the default."""
    usual = folder.root.parent == Path("multirun").resolve()
    place = "" if usual else f" {override('paths.output', folder.root.parent)}"
    return f"python -m sae_sweep task={task} {override('sweep', folder.root.name)}{place}"


class _Watch:
    """Waits until every run of the jobs is finished, or its job is lost."""

    def __init__(self, plan: Plan, cluster: Cluster, tickets: Sequence[Ticket]) -> None:
        self._cluster = cluster
        self._runs = {run.run_id: run for run in plan.runs}
        self._open = {ticket.id: ticket for ticket in tickets}
        self._ended_at: dict[str, float] = {}
        self._logged = {run.run_id for run in plan.runs if run not in unfinished(plan.runs)}
        jobs = {ticket.id: self._runs_of(ticket) for ticket in tickets}
        named = {job: runs for job, runs in jobs.items() if runs}
        self._following = Following(cluster.word, named, cluster.why_waiting)

    def wait(self) -> None:
        try:
            while self._open:
                ended = self._cluster.ended(list(self._open))  # before the files, which are then newer
                for ticket in list(self._open.values()):
                    self._update(ticket, ended.get(ticket.id))
                self._pause()
        finally:
            self._following.close()

    def _pause(self) -> None:
        """Show the progress until the cluster is to be asked again."""
        until = time.monotonic() + self._cluster.poll_s
        while self._open:
            self._following.look(self._open)
            left = until - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, _LOOK_EVERY_S))

    def _runs_of(self, ticket: Ticket) -> list[PlannedRun]:
        return [self._runs[run_id] for run_id in ticket.run_ids if run_id in self._runs]

    def _update(self, ticket: Ticket, ended: str | None) -> None:
        runs = self._runs_of(ticket)
        if ended is None:
            self._ended_at.pop(ticket.id, None)  # a requeued job ends more than once
        elif isinstance(ended, Stopped):
            if unfinished(runs):
                log.error(
                    "%s %s was %s and its runs are saved: launch the same command again to resume them",
                    *(self._cluster.word, ticket.id, ended),
                )
            del self._open[ticket.id]
        elif unfinished(runs):
            since = time.monotonic() - self._ended_at.setdefault(ticket.id, time.monotonic())
            if since >= self._cluster.lost_after_s:
                mark_lost(
                    runs,
                    f"{self._cluster.word} {ticket.id} ended ({ended}) before this run: see "
                    f"{pasted(ticket.log)}",
                )
                del self._open[ticket.id]
        self._log_finished(runs)
        if not unfinished(runs):
            self._open.pop(ticket.id, None)

    def _log_finished(self, runs: Sequence[PlannedRun]) -> None:
        """Log each run that is done, and what others failed for, once for all that one cause ended."""
        causes: dict[str | None, list[str]] = {}
        for run in runs:
            if run.run_id in self._logged or state(run.folder) == DAMAGED or unfinished([run]):
                continue
            self._logged.add(run.run_id)
            status = read_status(run.folder)
            if status.state == "done":
                log.info("%s: done (%d of %d)", run.name, len(self._logged), len(self._runs))
            else:
                causes.setdefault(status.error, []).append(run.name)
        for error, names in causes.items():
            log.error("%s: %s", ", ".join(names), error)


def mark_lost(runs: Sequence[PlannedRun], why: str) -> None:
    """Mark the runs that a lost job left unfinished as failed."""
    for run in unfinished(runs):
        try:
            with hold(run.folder):
                set_state(run, "failed", error=why)
        except SaeSweepError as error:  # another process trains it and writes its state
            log.error("%s: %s; %s", run.name, why, error)


def write_tickets(folder: SweepFolder, tickets: Sequence[Ticket]) -> None:
    """Replace the list of a sweep's submitted jobs."""
    jobs = [dataclasses.asdict(ticket) for ticket in tickets]
    with hold_sweep(folder):
        write_record(folder.jobs / "submitted.json", {"jobs": jobs})


def read_tickets(folder: SweepFolder) -> list[Ticket]:
    """Jobs that earlier commands submitted for a sweep; they may have ended since.

    Raises:
        SaeSweepError: naming the file and the remedy, if it is damaged.
    """
    path = folder.jobs / "submitted.json"
    if not is_present(path):
        return []
    record = read_json(path, _REMEDY)
    if isinstance(record, dict):  # version 0.1.0 wrote the list alone
        record = read_record(path, _REMEDY).get("jobs")
    try:
        tickets: list[Ticket] = typed(record, list[Ticket], "jobs")
    except ConfigError as error:
        raise unreadable(path, error, _REMEDY) from error
    return tickets
