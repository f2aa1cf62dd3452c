"""This machine as a cluster: plain worker processes, each with a GPU of its own where there are any."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_sweep.launch.jobs import Submitted, Ticket
from sae_sweep.store import SweepFolder


class _Worker(NamedTuple):
    number: int
    slot: int
    process: subprocess.Popen[bytes]


class Local:
    """Worker processes, as many at once as there are slots; a job is `python -m MODULE FOLDER NUMBER`."""

    word = "job"
    poll_s = 0.2
    lost_after_s = 0.0  # a process that has ended wrote all that it ever will

    def __init__(self, folder: SweepFolder, module: str, slots: Sequence[str | None], threads: int) -> None:
        """What workers there may be.

        Args:
            folder: the sweep's.
            module: what a worker runs.
            slots: for each worker the GPU that it sees, in the words of CUDA_VISIBLE_DEVICES; None: all, and
                its share of the threads.
            threads: of all workers together; a user's OMP_NUM_THREADS is left as it is.
        """
        self._folder = folder
        self._module = module
        self._slots = list(slots)
        self._threads = threads
        self._waiting: list[int] = []
        self._workers: list[_Worker] = []
        self._ended: dict[str, str] = {}

    def submit(self, numbers: Sequence[int]) -> list[Submitted]:
        self._waiting += numbers
        self._slots = self._slots[: len(numbers)]  # threads are shared by workers that have something to do
        return [Submitted(str(number), self._folder.jobs / f"{number}.log") for number in numbers]

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Also starts the next jobs where workers have become free."""
        for worker in list(self._workers):
            code = worker.process.poll()
            if code is not None:
                self._workers.remove(worker)
                self._ended[str(worker.number)] = (
                    f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                )
        self._start()
        return {job: how for job, how in self._ended.items() if job in ids}

    def close(self) -> None:
        for worker in self._workers:
            worker.process.wait()

    def leave(self, tickets: Sequence[Ticket]) -> str:
        """Let each worker save what it has, and wait for that."""
        del tickets
        self._waiting.clear()
        for worker in self._workers:
            worker.process.terminate()
        self.close()
        return "launch the same command again to resume"

    def _start(self) -> None:
        busy = {worker.slot for worker in self._workers}
        for slot, device in enumerate(self._slots):
            if slot not in busy and self._waiting:
                number = self._waiting.pop(0)
                self._workers.append(_Worker(number, slot, self._launch(number, device)))

    def _launch(self, number: int, device: str | None) -> subprocess.Popen[bytes]:
        if device is not None:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        else:  # with every core to each, they would wait for one another at every step of a product
            share = max(1, self._threads // len(self._slots))
            environment = {"OMP_NUM_THREADS": str(share), **os.environ}
        command = [sys.executable, "-m", self._module, str(self._folder.root), str(number)]
        with (self._folder.jobs / f"{number}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
