"""What a fault leaves behind: one line in `status.json`, and its traceback in the run's `train.log`."""

import logging
from collections.abc import Sequence
from typing import Any

from sae_sweep import logs
from sae_sweep.config import ConfigError, SaeSweepError, first_line
from sae_sweep.config.pasted import pasted
from sae_sweep.store.plan_file import PlannedRun
from sae_sweep.store.status import set_state, unfinished
from sae_sweep.store.status import state as state_of

log = logging.getLogger(__name__)

_LONGEST = 400
"""Characters of an error's message that its line keeps: a compiler's can fill pages."""


def fault_line(error: Exception) -> str:
    """Say in one line what went wrong; an unexpected error refers to its traceback."""
    if isinstance(error, ConfigError):
        return "; ".join(error.problems)
    if isinstance(error, SaeSweepError):
        return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    kind, message = type(error).__name__, first_line(error)[:_LONGEST]
    return f"{kind if message == kind else f'{kind}: {message}'} (traceback in train.log)"


def log_traceback(error: Exception) -> None:
    """Write the traceback of an unexpected error into the open train.logs."""
    if not isinstance(error, SaeSweepError):
        logs.write_traceback(error)


def settle(runs: Sequence[PlannedRun], state: str, **details: Any) -> None:
    """Set the state of those runs that are unfinished; one that is done does not become pending.

    A run whose status cannot be read or written is named in the log; the others get their state.
    """
    for run in runs:
        try:
            if unfinished([run]) and (state != "pending" or state_of(run.folder) != "done"):
                set_state(run, state, **details)
        except Exception as error:  # the last thing that is done for a run must not end the others
            log.error("%s: cannot record that it is %s: %s", run.name, state, fault_line(error))
            with logs.only_for(run.name):
                log_traceback(error)


def fail(runs: Sequence[PlannedRun], error: Exception, line: str | None = None) -> None:
    """Record that runs failed with an error, each with the traceback in its log.

    Args:
        runs: runs that the error ended; those that are done or failed keep their state.
        error: the error that they share.
        line: the line for their status; None: `fault_line`.
    """
    line = line or fault_line(error)
    log.error("%s", line)
    log_traceback(error)
    settle(runs, "failed", error=line)


def report_unfinished(runs: Sequence[PlannedRun]) -> int:
    """Log each run that is neither done nor failed although its launch has ended; returns their number."""
    left = unfinished(runs)
    for run in left:
        log.error("not finished: %s (see %s)", run.name, pasted(run.folder.log))
    return len(left)
