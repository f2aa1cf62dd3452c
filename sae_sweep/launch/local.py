"""Runs jobs as worker processes on this machine, one per GPU if there are any."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_sweep.launch import worker
from sae_sweep.launch.frozen import FrozenGroup
from sae_sweep.launch.jobs import Stopped, Ticket
from sae_sweep.plan import Plan
from sae_sweep.signals import STOP_SIGNALS, blocked
from sae_sweep.store import disk_errors

log = logging.getLogger(__name__)


class _Worker(NamedTuple):
    number: int
    slot: int
    process: subprocess.Popen[bytes]


class Local:
    """Worker processes, one per slot; each runs a job as `python -m MODULE FOLDER NUMBER`.

    A worker stops, and saves its runs, as soon as this process is gone.
    """

    word = "job"
    poll_s = 0.2
    lost_after_s = 0.0  # the files of an ended process are complete

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.folder
        self._slots = _slots(plan)
        self._threads = worker_threads(plan)
        self._waiting: list[int] = []
        self._workers: list[_Worker] = []
        self._ended: dict[str, str] = {}
        self.sharers = len(self._slots)

    def active(self) -> list[Ticket]:
        """No jobs: workers end with their command."""
        return []

    def submit(self, groups: Sequence[FrozenGroup]) -> list[Ticket]:
        self._waiting += [group.number for group in groups]
        return [
            Ticket(number, str(number), str(self._folder.jobs / f"{number}.log"), run_ids)
            for number, run_ids in groups
        ]

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Map ended jobs to how they ended; also starts waiting jobs in free slots."""
        for one in list(self._workers):
            code = one.process.poll()
            if code is not None:
                self._workers.remove(one)
                _wait(one)
                self._ended[str(one.number)] = _how_it_ended(code)
        self._start()
        return {job: how for job, how in self._ended.items() if job in ids}

    def why_waiting(self, ids: Sequence[str]) -> str:
        """Nothing: those without a free slot wait for one."""
        del ids
        return ""

    def close(self) -> None:
        for one in self._workers:
            _wait(one)

    def leave(self, tickets: Sequence[Ticket]) -> str:
        """Tell the workers to save and stop, and wait for them."""
        del tickets
        self._waiting.clear()
        for one in self._workers:
            one.process.terminate()
        self.close()
        return "launch the same command again to resume"

    def _start(self) -> None:
        busy = {one.slot for one in self._workers}
        for slot, gpu in enumerate(self._slots):
            if slot not in busy and self._waiting:
                number = self._waiting.pop(0)
                with blocked():  # a stop comes before or after the start; the worker unblocks its own signals
                    self._workers.append(_Worker(number, slot, self._launch(number, gpu)))

    def _launch(self, number: int, gpu: str | None) -> subprocess.Popen[bytes]:
        if gpu is not None:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        else:
            environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        command = [sys.executable, "-m", worker.__name__, str(self._folder.root), str(number)]
        path = self._folder.jobs / f"{number}.log"
        with disk_errors(path):
            log_file = path.open("ab")
        with log_file as file:
            # nothing is written to the pipe: its end tells the worker that this process is gone
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
            )


def _wait(one: _Worker) -> None:
    one.process.wait()
    if one.process.stdin is not None:
        one.process.stdin.close()


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    if code - 128 in STOP_SIGNALS:
        return Stopped(f"stopped by {signal.Signals(code - 128).name}")
    return f"exit code {code}"


def worker_threads(plan: Plan) -> int:
    """CPU threads of each worker: `launcher.threads`, else `OMP_NUM_THREADS`, else a share of the cores.

    The share depends on the whole plan, not on what is left of it: a run that is launched later is then
    trained with as many threads as the others.
    """
    import torch

    if plan.command.launcher.threads is not None:
        return plan.command.launcher.threads
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // len(_slots(plan)))


def _slots(plan: Plan) -> list[str | None]:
    """The GPU of each worker, as CUDA_VISIBLE_DEVICES names it; None for a worker on the CPU.

    There are no more workers than groups in the plan.
    """
    workers = plan.command.launcher.workers
    gpus = _gpus() if plan.runs[0].config.device in ("auto", "cuda") else []
    if workers and gpus and workers > len(gpus):
        log.warning("launcher.workers=%d: only %d at once, one per GPU", workers, len(gpus))
    slots: list[str | None] = [*gpus[: workers or len(gpus)]] if gpus else [None] * (workers or 2)
    return slots[: len(plan.groups())]


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]
