"""Counts what the language model reads for a group, and what separate runs would have read."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sae_sweep.config import SaeSweepError
from sae_sweep.store import PlannedRun, Status, read_status

if TYPE_CHECKING:
    from sae_sweep.activations import LanguageModel

log = logging.getLogger(__name__)


class LmUse:
    """Counts tokens and seconds of one LM pass for training; evaluation is not counted."""

    def __init__(self, lm: "LanguageModel") -> None:
        self._lm = lm
        self._opened = lm.tokens_read, lm.seconds
        self.begin()

    def total(self) -> tuple[int, float]:
        """Tokens and seconds of all passes so far."""
        return self._lm.tokens_read - self._opened[0], self._lm.seconds - self._opened[1]

    def begin(self) -> None:
        """Start counting another pass over the text."""
        self._pass = f"{os.getpid()}-{time.time_ns()}"
        self._start = self._lm.tokens_read, self._lm.seconds
        self._cached, self._longest = 0, 1

    def filled(self, longest: int) -> None:
        """Record that everything read so far filled the activation cache, for a run of `longest` steps."""
        self._cached, self._longest = self._read(), longest

    def _read(self) -> int:
        return self._lm.tokens_read - self._start[0]

    def record(self, run: PlannedRun) -> dict[str, Any]:
        """Counts for the `status.json` of a run that ends now."""
        cached = round(self._cached * run.config.steps / self._longest)
        return {
            "pass": self._pass,
            "tokens": self._read(),
            "seconds": self._lm.seconds - self._start[1],
            "alone": cached + self._read() - self._cached,
        }


def log_lm_use(runs: Sequence[PlannedRun]) -> None:
    """Log the LM's tokens and seconds for trained runs, from their status; seconds exclude GPU waits."""
    found = [one.lm for one in _statuses(runs) if one.state in ("done", "failed") and one.lm]
    if not found:
        return
    passes = {one["pass"]: one for one in sorted(found, key=lambda one: one["tokens"]) if one["tokens"]}
    tokens = sum(one["tokens"] for one in passes.values())
    seconds = sum(one["seconds"] for one in passes.values())
    text = f"LM: {_passes(len(passes))}, {tokens:,} tokens in {seconds:.1f} s, for {len(found)} run"
    text += "s" * (len(found) != 1)
    if all(one["alone"] for one in found):
        text += f"; one by one: {_passes(len(found))}, {sum(one['alone'] for one in found):,} tokens"
    log.info("%s", text)


def _passes(number: int) -> str:
    return f"{number} pass" if number == 1 else f"{number} passes"


def log_fallbacks(runs: Sequence[PlannedRun]) -> None:
    """Log each reason why runs were trained without fused attention or fast kernels, from their status."""
    reasons: dict[tuple[str, str], int] = {}
    for status in _statuses(runs):
        for what, why in status.fell_back.items():
            reasons[what, why] = reasons.get((what, why), 0) + 1
    for (what, why), number in reasons.items():
        log.warning("%s of %d run%s: not the fast one: %s", what, number, "s" * (number != 1), why)


def _statuses(runs: Sequence[PlannedRun]) -> Iterator[Status]:
    """Statuses of runs; one that was damaged meanwhile is named where the runs are counted."""
    for run in runs:
        with suppress(SaeSweepError):
            yield read_status(run.folder)
