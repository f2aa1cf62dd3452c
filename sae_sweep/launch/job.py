"""Trains one group in its own process: a SLURM job, or a worker on this machine."""

import logging
import signal
from contextlib import ExitStack
from pathlib import Path

from sae_sweep import logs
from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.launch.frozen import read_group
from sae_sweep.plan import Plan
from sae_sweep.signals import Interrupted, StopRequest, stop_signals
from sae_sweep.store import SweepFolder, fail, hold, settle, unfinished
from sae_sweep.store.home import provide_home

log = logging.getLogger(__name__)


def run_job(folder: Path, number: int) -> None:
    """Train the unfinished runs of a frozen group and record the results in their status.

    It holds locks on their folders. SIGUSR2 (preemption or timeout) saves the runs, then calls the previous
    handler: submitit's requeues the job. The other stop signals save the runs and end the process.

    Raises:
        SystemExit: with 128 + the signal that asked to stop, after everything was saved.
        SaeSweepError: if the frozen group cannot be read, or another process holds one of its runs.
    """
    earlier = signal.getsignal(signal.SIGUSR2)
    requeue = earlier if callable(earlier) and not isinstance(earlier, StopRequest) else None
    try:
        with stop_signals() as stop, ExitStack() as stack:
            plan, sharers = read_group(SweepFolder(folder), number)
            for run in plan.runs:
                stack.enter_context(hold(run.folder))
            _train(plan, stop, sharers, number)
    except Interrupted as interrupted:
        log.info("%s", interrupted)
        if interrupted.signum == signal.SIGUSR2 and requeue is not None:
            requeue(interrupted.signum, None)
        raise SystemExit(128 + interrupted.signum) from None


def _train(plan: Plan, stop: StopRequest, sharers: int, number: int) -> None:
    try:
        with stop.deferred():  # slow to import, and a signal might break it
            from sae_sweep.launch.group import train_runs

        with stop.obeyed():
            train_runs(plan, unfinished(plan.runs), stop, sharers, number)
    except Interrupted:
        settle(plan.runs, "pending")
        raise
    except Exception as error:  # not in a run or a group, which have borders of their own
        if isinstance(error, SaeSweepError):
            fail(plan.runs, error)
        else:
            cause = f"{type(error).__name__}: {first_line(error)} (traceback in the log of its job)"
            fail(plan.runs, error, cause)
            raise


def run_job_alone(folder: Path, number: int) -> None:
    """Run a job in a fresh process: set up logging first."""
    logs.log_to_terminal()
    provide_home()
    try:
        run_job(folder, number)
    except SaeSweepError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
