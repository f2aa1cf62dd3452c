"""Shows how far the jobs of a command are: a bar per running group, read from what the jobs write."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sae_sweep.config.swept import swept_keys
from sae_sweep.progress import LINE_EVERY_S, Progress, shown_means
from sae_sweep.report.formatting import short_labels
from sae_sweep.store import PlannedRun, state
from sae_sweep.tracking.history import latest_points

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
"""Seconds between two looks at the runs' files."""


class Following:
    """The progress of jobs, as long as they are open; the runs of one job are one group."""

    def __init__(
        self,
        word: str,
        jobs: Mapping[str, Sequence[PlannedRun]],
        why_waiting: Callable[[Sequence[str]], str] = lambda ids: "",
    ) -> None:
        """Follow jobs.

        Args:
            word: what a job is called.
            jobs: the runs of each, by its id.
            why_waiting: says why jobs have not started; empty if nothing is known.
        """
        self._word = word
        self._why_waiting = why_waiting
        self._jobs = jobs
        self._labels = dict(zip(jobs, group_labels(list(jobs.values())), strict=True))
        self._shown: dict[str, Progress] = {}
        self._rows: dict[str, int] = {}
        self._looked = -_LOOK_EVERY_S
        self._said = time.monotonic()

    def look(self, open_jobs: Collection[str]) -> None:
        """Show how far the open jobs are, and close the bars of the others; quick if called often."""
        for job in [job for job in self._shown if job not in open_jobs]:
            self._close(job)
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        waiting = [job for job in open_jobs if job in self._jobs and not self._look_at(job)]
        if waiting and not self._shown and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            why = self._why_waiting(waiting)
            log.info(
                "%d of %d %ss have not begun to train%s",
                *(len(waiting), len(open_jobs), self._word, f" ({why})" if why else ""),
            )

    def close(self) -> None:
        for job in list(self._shown):
            self._close(job)

    def _look_at(self, job: str) -> bool:
        """Show the progress of a job; returns whether it has begun to train."""
        running = [run for run in self._jobs[job] if state(run.folder) == "running"]
        points = [found[-1] for run in running if (found := latest_points(run.folder.history))]
        if not running:
            return job in self._shown
        tokens = max((point["tokens"] for point in points), default=0)
        if job not in self._shown:
            self._shown[job] = self._open(job, tokens)
        known = [point for point in points if point["tokens"] == tokens]
        self._shown[job].show(tokens, shown_means(known))
        return True

    def _open(self, job: str, tokens: int) -> Progress:
        taken = set(self._rows.values())
        self._rows[job] = next(row for row in range(len(self._jobs)) if row not in taken)
        total = max(run.config.steps * run.config.batch for run in self._jobs[job])
        return Progress(self._labels[job], total, tokens, row=self._rows[job])

    def _close(self, job: str) -> None:
        self._shown.pop(job).close()
        del self._rows[job]


def group_labels(groups: Sequence[Sequence[PlannedRun]]) -> list[str]:
    """A short label per group: the keys that its runs share and that tell the groups apart."""
    runs = [run for group in groups for run in group]
    keys = iter(swept_keys([run.config for run in runs]))
    shared = [_shared([next(keys) for _ in group]) for group in groups]
    sizes = [f"{len(group)} runs" if len(group) > 1 else "1 run" for group in groups]
    if len(groups) == 1:
        return sizes
    return short_labels([f"group {number}, {size}" for number, size in enumerate(sizes, 1)], shared)


def _shared(keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that all have, with equal values."""
    first = keys[0] if keys else {}
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in keys)}
