"""Runs jobs on SLURM: submitit submits them; squeue and the runs' files tell how they ended.

submitit's job states are not used: without SLURM's accounting it would wait for a killed job for ever.
"""

import contextlib
import io
import logging
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config import SaeSweepError, SlurmConfig
from sae_sweep.launch.frozen import FrozenGroup
from sae_sweep.launch.job import run_job_alone
from sae_sweep.launch.jobs import Ticket, read_tickets, task_command, write_tickets
from sae_sweep.launch.refusals import remedy
from sae_sweep.plan import Plan
from sae_sweep.store import SweepFolder

log = logging.getLogger(__name__)

_REQUEUES = 1_000_000
"""Practically no limit: submitit's default is three, and each signal to a short job counts as a timeout."""
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class GroupJob:
    """The callable that submitit pickles, which is only a path and a number."""

    folder: Path
    number: int

    def __call__(self) -> None:
        run_job_alone(self.folder, self.number)

    def checkpoint(self) -> Any:
        """Requeue the same job: the runs resume from their checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm:
    """The SLURM jobs of one sweep."""

    word = "SLURM job"
    sharers = 1

    def __init__(self, plan: Plan) -> None:
        self._config = plan.command.launcher.slurm
        self._folder = plan.folder
        self._sweep = plan.sweep
        self._silent = False
        self.poll_s = self._config.poll_s
        self.lost_after_s = self._config.lost_after_s

    def active(self) -> list[Ticket]:
        tickets = read_tickets(self._folder)
        ended = self.ended([ticket.id for ticket in tickets]) if tickets else {}
        return [ticket for ticket in tickets if ticket.id not in ended]

    def submit(self, groups: Sequence[FrozenGroup]) -> list[Ticket]:
        alive = self.active()  # also jobs for other runs of the sweep: later commands follow them
        jobs = self._submit([GroupJob(self._folder.root, group.number) for group in groups])
        tickets = [
            Ticket(number, job.job_id, str(job.paths.stderr), run_ids)
            for (number, run_ids), job in zip(groups, jobs, strict=True)
        ]
        write_tickets(self._folder, [*alive, *tickets])
        return tickets

    def _submit(self, jobs: Sequence[GroupJob]) -> Sequence[Any]:
        import submitit

        try:
            executor = submitit.AutoExecutor(
                self._folder.jobs / "slurm", cluster="slurm", slurm_max_num_timeout=_REQUEUES
            )
            executor.update_parameters(**_parameters(self._config, self._sweep))
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                return executor.submit_array(jobs)
        except (RuntimeError, OSError) as error:  # submitit's own errors are RuntimeErrors
            why = _one_line(error)
            parts = [f"SLURM took no job: {why}", remedy(why, self._config)]
            raise SaeSweepError("; ".join(part for part in parts if part)) from error

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        try:
            found = ended(ids)
        except SaeSweepError as error:
            if not self._silent:
                log.warning("%s; asking again every %g s", error, self.poll_s)
            self._silent = True
            return {}
        self._silent = False
        return found

    def why_waiting(self, ids: Sequence[str]) -> str:
        return why_waiting(ids, self._config)

    def close(self) -> None:
        """Do nothing: SLURM jobs end by themselves."""

    def leave(self, tickets: Sequence[Ticket]) -> str:
        cancel = " ".join(["scancel", *_arrays([ticket.id for ticket in tickets])])
        progress = task_command("status", self._folder)
        return f"the SLURM jobs go on: check progress with `{progress}`, cancel with `{cancel}`"


def active_jobs(folder: SweepFolder) -> list[Ticket]:
    """SLURM jobs of a sweep that have not ended, or all of its jobs if SLURM does not answer.

    Raises:
        SaeSweepError: if the list of jobs is damaged.
    """
    tickets = read_tickets(folder)
    if not tickets:
        return []
    try:
        gone = ended([ticket.id for ticket in tickets])
    except SaeSweepError:
        return tickets
    return [ticket for ticket in tickets if ticket.id not in gone]


def ended(ids: Sequence[str]) -> Mapping[str, str]:
    """Map each job that has ended for good to how it ended.

    Raises:
        SaeSweepError: if SLURM does not answer.
    """
    states = _squeue(ids)
    found = {job: states.get(job, "no longer known to SLURM") for job in ids}
    return {job: state for job, state in found.items() if job not in states or state in _ENDED}


def why_waiting(ids: Sequence[str], config: SlurmConfig) -> str:
    """SLURM's reasons for which pending jobs wait, with the keys that have to do with them."""
    command = ["squeue", "-h", "-r", "-t", "pending", "-j", ",".join(_arrays(ids)), "-o", "%i|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    rows = [line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line]
    reasons = list(dict.fromkeys(reason for job, reason in rows if job in ids and reason != "None"))
    hints = (remedy(reason, config) for reason in reasons)
    return "; ".join(
        [*([", ".join(reasons)] if reasons else []), *dict.fromkeys(hint for hint in hints if hint)]
    )


def _squeue(ids: Sequence[str]) -> dict[str, str]:
    """Job id -> state, for jobs that SLURM still knows; it forgets a job minutes after its end."""
    command = ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(_arrays(ids)), "-o", "%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SaeSweepError(f"cannot ask SLURM: {error}") from error
    if done.returncode and "Invalid job id" not in done.stderr:  # its answer for a forgotten job
        raise SaeSweepError(f"cannot ask SLURM: {_one_line(done.stderr)}")
    return dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)


def _arrays(ids: Sequence[str]) -> list[str]:
    """`4711_0, 4711_1, 4712` -> `4711, 4712`."""
    return list(dict.fromkeys(job.split("_")[0] for job in ids))


def _one_line(error: object) -> str:
    """SLURM's error message in one line, without its program's name."""
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or "no reason given"


def _parameters(config: SlurmConfig, sweep: str) -> dict[str, object]:
    """Parameters by submitit's names; None leaves the choice to the cluster."""
    return {
        "name": f"sae-{sweep}",
        "timeout_min": config.time_min,
        "gpus_per_node": config.gpus or None,
        "cpus_per_task": config.cpus,
        "mem_gb": config.mem_gb,
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "slurm_qos": config.qos,
        "slurm_array_parallelism": config.array_parallelism,
        "slurm_signal_delay_s": config.signal_delay_s,
        "slurm_setup": list(config.setup) or None,
        "slurm_additional_parameters": dict(config.extra) or None,
        # since SLURM 22.05 srun no longer inherits this from the job
        "slurm_srun_args": [f"--cpus-per-task={config.cpus}"],
    }
