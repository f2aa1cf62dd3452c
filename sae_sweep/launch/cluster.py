"""`task=train` with the groups as jobs of their own: submit them, and wait for what their files say."""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from sae_sweep.config import Interrupted, SaeSweepError
from sae_sweep.launch.job import run_job_alone
from sae_sweep.launch.jobs import Cluster, Ticket, freeze_group, read_tickets, task_command, write_tickets
from sae_sweep.launch.ledger import read_ledgers, tell
from sae_sweep.launch.local import Local
from sae_sweep.launch.stopping import stopped_by, undisturbed
from sae_sweep.plan.plan import Plan, PlannedRun
from sae_sweep.store import hold, read_status
from sae_sweep.store.status import prepare, report_failed, set_state, state, unsettled

log = logging.getLogger(__name__)

_STOP = (signal.SIGINT, signal.SIGTERM)


def train_on_cluster(plan: Plan) -> int:
    """One job for each group that has something left to train; returns how many runs failed.

    Jobs of an earlier command that still go on are waited for like those submitted now, but nothing is waited
    for with `launcher.detach`.

    Raises:
        SaeSweepError: if the cluster takes no jobs, in its own words, or a folder cannot be used.
        Interrupted: if a signal asked to stop; SLURM's jobs go on, local workers have saved what they had.
    """
    cluster = open_cluster(plan)
    tickets: list[Ticket] = []
    with stopped_by(_STOP):
        try:
            with undisturbed(_STOP):
                tickets += submit(plan, cluster)
            if plan.config.launcher.detach:
                _say_how_to_follow(plan, tickets)
                return 0
            if tickets:
                log.info("how far they are: %s", task_command("status", plan.folder))
            _Watch(plan, cluster, tickets).wait()
            cluster.close()
            tell(read_ledgers(plan.folder, [ticket.number for ticket in tickets]))
        except Interrupted as stop:
            raise Interrupted(stop.signum, cluster.leave(tickets)) from None
        except BaseException:
            cluster.leave(tickets)
            raise
    return report_failed(plan.runs) + len(unsettled(plan.runs))


def open_cluster(plan: Plan) -> Cluster:
    """What `launcher.cluster` names."""
    launcher = plan.config.launcher
    if launcher.cluster == "local":
        return Local(plan.folder, run_job_alone.__module__, _slots(plan), _threads())
    from sae_sweep.launch.slurm import Slurm  # submitit loads here

    return Slurm(launcher.slurm, plan.folder, plan.sweep, run_job_alone)


def _slots(plan: Plan) -> list[str | None]:
    """For each worker the GPU that is its own, None where all work on the CPU."""
    config = plan.config
    gpus = _gpus() if config.device in ("auto", "cuda") else []
    if not gpus:
        return [None] * (config.launcher.workers or 2)
    workers = config.launcher.workers or len(gpus)
    if workers > len(gpus):
        log.warning("launcher.workers=%d: only %d at once, one a GPU", workers, len(gpus))
    return list(gpus[:workers])


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def submit(plan: Plan, cluster: Cluster) -> list[Ticket]:
    """Freeze what is to be trained and submit it; returns the jobs that the sweep now waits for.

    Raises:
        SaeSweepError: if a folder is held or holds another run, or the cluster refuses; the runs then say so.
    """
    plan.refuse_another()
    alive = _alive(plan, cluster)
    going_on = [ticket for ticket in alive if {run.run_id for run in plan.runs} & set(ticket.run_ids)]
    taken = {run_id for ticket in going_on for run_id in ticket.run_ids}
    ours = [run for run in plan.runs if run.run_id not in taken]  # the others' folders belong to their jobs
    waiting = [run for run in ours if state(run.folder) != "done"]
    prepare(ours)
    plan.save()
    groups = [rest for group in plan.groups() if (rest := [run for run in group if run in waiting])]
    log.info(
        "%s: %d runs, %d already done, %d in jobs that go on; %d new jobs",
        *(
            plan.folder.root,
            len(plan.runs),
            len([run for run in plan.runs if state(run.folder) == "done"]),
            len(plan.runs) - len(ours),
            len(groups),
        ),
    )
    return going_on + (_submit_groups(plan, cluster, groups, alive) if groups else [])


def _alive(plan: Plan, cluster: Cluster) -> list[Ticket]:
    """Jobs of earlier commands for this sweep that have not ended, whichever of its runs they train."""
    if isinstance(cluster, Local):
        return []  # workers end with their command
    tickets = read_tickets(plan.folder)
    ended = cluster.ended([ticket.id for ticket in tickets]) if tickets else {}
    return [ticket for ticket in tickets if ticket.id not in ended]


def _submit_groups(
    plan: Plan, cluster: Cluster, groups: Sequence[Sequence[PlannedRun]], alive: Sequence[Ticket]
) -> list[Ticket]:
    numbers = [freeze_group(plan, group) for group in groups]
    try:
        submitted = cluster.submit(numbers)
    except SaeSweepError as error:
        for run in (run for group in groups for run in group):
            set_state(run, "failed", error=str(error))
        raise
    tickets = [
        Ticket(number, job.id, str(job.log), tuple(run.run_id for run in group))
        for number, job, group in zip(numbers, submitted, groups, strict=True)
    ]
    if not isinstance(cluster, Local):
        write_tickets(plan.folder, [*alive, *tickets])
    for ticket in tickets:
        log.info("%s %s: %d runs, log %s", cluster.word, ticket.id, len(ticket.run_ids), ticket.log)
    return tickets


def _say_how_to_follow(plan: Plan, tickets: Sequence[Ticket]) -> None:
    from sae_sweep.launch.slurm import follow

    if tickets:
        sys.stdout.write(f"{plan.sweep}: {len(tickets)} SLURM jobs; {follow(plan.folder, tickets)}\n")
        sys.stdout.write(f"when they are done, compare with `{task_command('match', plan.folder)}`\n")
    else:
        sys.stdout.write(f"{plan.sweep}: nothing left to train\n")


class _Watch:
    """Waits until each run of some jobs is settled, or its job is lost."""

    def __init__(self, plan: Plan, cluster: Cluster, tickets: Sequence[Ticket]) -> None:
        self._cluster = cluster
        self._runs = {run.run_id: run for run in plan.runs}
        self._open = {ticket.id: ticket for ticket in tickets}
        self._ended_at: dict[str, float] = {}
        self._told = {run.run_id for run in plan.runs if run not in unsettled(plan.runs)}

    def wait(self) -> None:
        while self._open:
            ended = self._cluster.ended(list(self._open))  # before the files: they are the later word
            for ticket in list(self._open.values()):
                self._look(ticket, ended.get(ticket.id))
            if self._open:
                time.sleep(self._cluster.poll_s)

    def _look(self, ticket: Ticket, ended: str | None) -> None:
        runs = [self._runs[run_id] for run_id in ticket.run_ids if run_id in self._runs]
        if ended is None:
            self._ended_at.pop(ticket.id, None)  # a job that is requeued ends more than once
        elif unsettled(runs):
            since = time.monotonic() - self._ended_at.setdefault(ticket.id, time.monotonic())
            if since >= self._cluster.lost_after_s:
                lose(
                    runs,
                    f"{self._cluster.word} {ticket.id} ended ({ended}) before this run: see {ticket.log}",
                )
                del self._open[ticket.id]
        for run in runs:
            self._tell(run)
        if not unsettled(runs):
            self._open.pop(ticket.id, None)

    def _tell(self, run: PlannedRun) -> None:
        if run.run_id in self._told or unsettled([run]):
            return
        self._told.add(run.run_id)
        status = read_status(run.folder)
        if status["state"] == "done":
            log.info("%s: done (%d of %d)", run.name, len(self._told), len(self._runs))
        else:
            log.error("%s: %s", run.name, status.get("error"))


def lose(runs: Sequence[PlannedRun], why: str) -> None:
    """The job of these runs is gone: those that it left unsettled have failed."""
    for run in unsettled(runs):
        try:
            with hold(run.folder):
                set_state(run, "failed", error=why)
        except SaeSweepError as error:  # another process trains it: its state is not ours to write
            log.error("%s: %s; %s", run.name, why, error)
