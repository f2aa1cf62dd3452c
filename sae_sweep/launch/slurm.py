"""SLURM as a cluster: submitit submits; what became of a job is asked of squeue, and of the runs' own files.

submitit's own view of a job is not used: without SLURM's accounting it waits for ever for one that is killed.
"""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from sae_sweep.config import SaeSweepError, SlurmConfig
from sae_sweep.launch.jobs import Submitted, Ticket, Work, task_command
from sae_sweep.launch.squeue import arrays, ended, one_line
from sae_sweep.store import SweepFolder

log = logging.getLogger(__name__)

_REQUEUES = 1_000_000
"""As often as it takes: submitit gives up after three, and counts each signal to a short job as a timeout."""


@dataclass(frozen=True)
class GroupJob:
    """What submitit pickles: a function by its name, a path and a number."""

    work: Work
    folder: Path
    number: int

    def __call__(self) -> None:
        self.work(self.folder, self.number)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What a requeued job starts with: the same again, for the runs know how far they are."""
        return submitit.helpers.DelayedSubmission(self)


class Slurm:
    """The jobs of one sweep."""

    word = "SLURM job"

    def __init__(self, config: SlurmConfig, folder: SweepFolder, sweep: str, work: Work) -> None:
        self._config = config
        self._folder = folder
        self._sweep = sweep
        self._work = work
        self._silent = False
        self.poll_s = config.poll_s
        self.lost_after_s = config.lost_after_s

    def submit(self, numbers: Sequence[int]) -> list[Submitted]:
        jobs = [GroupJob(self._work, self._folder.root, number) for number in numbers]
        try:
            executor = submitit.AutoExecutor(
                self._folder.jobs / "slurm", cluster="slurm", slurm_max_num_timeout=_REQUEUES
            )
            executor.update_parameters(**_parameters(self._config, self._sweep))
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                submitted = executor.submit_array(jobs)
        except (RuntimeError, OSError) as error:  # all of submitit's own are the former
            raise SaeSweepError(f"SLURM took no job: {one_line(error)}") from error
        return [Submitted(job.job_id, job.paths.stderr) for job in submitted]

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

    def close(self) -> None:
        """Jobs end by themselves."""

    def leave(self, tickets: Sequence[Ticket]) -> str:
        return f"the SLURM jobs go on: {follow(self._folder, tickets)}"


def follow(folder: SweepFolder, tickets: Sequence[Ticket]) -> str:
    """How to see what becomes of jobs, and how to cancel them."""
    cancel = " ".join(["scancel", *arrays([ticket.id for ticket in tickets])])
    return f"follow them with `{task_command('status', folder)}`, cancel them with `{cancel}`"


def _parameters(config: SlurmConfig, sweep: str) -> dict[str, object]:
    """In submitit's names; None is what the cluster chooses."""
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
        # since SLURM 22.05 srun no longer takes this from the job by itself
        "slurm_srun_args": [f"--cpus-per-task={config.cpus}"],
    }
