"""Logging of a command: to the terminal, and to the `train.log` of each run in training."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

log = logging.getLogger(__name__)

_ONLY_IN_FILES = "only_in_files"
"""Attribute of records that the terminal does not show."""
_current_run: ContextVar[str | None] = ContextVar("current_run", default=None)


@contextmanager
def only_for(run: str) -> Iterator[None]:
    """Send lines logged inside to this run's log only; other lines go to every open log."""
    token = _current_run.set(run)
    try:
        yield
    finally:
        _current_run.reset(token)


def log_traceback(error: BaseException) -> None:
    """Write an error's traceback into the open log files; the terminal shows one line elsewhere."""
    log.error("%s", type(error).__name__, exc_info=error, extra={_ONLY_IN_FILES: True})


def log_to_terminal() -> None:
    """Log to standard error; standard output is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: not hasattr(record, _ONLY_IN_FILES))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sae_sweep").setLevel(logging.INFO)


@contextmanager
def log_to_files(runs: Sequence[tuple[str, Path]]) -> Iterator[None]:
    """Append to the log file of each run; `runs` holds (name, file) pairs."""
    with ExitStack() as stack:
        for name, path in runs:
            stack.callback(_detach, _attach(name, path))
        yield


def _attach(name: str, path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda record: _current_run.get() in (None, name))
    logging.getLogger().addHandler(handler)
    return handler


def _detach(handler: logging.Handler) -> None:
    logging.getLogger().removeHandler(handler)
    handler.close()
