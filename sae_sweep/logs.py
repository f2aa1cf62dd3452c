"""What a command shows: its results, and its log, also in the `train.log` of each run in training."""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sae_sweep.config import SaeSweepError, escaped, escaped_lines

log = logging.getLogger(__name__)

_ONLY_IN_FILES = "only_in_files"
"""Attribute of records that the terminal does not show."""
_reader_left = False
_current_run: ContextVar[str | None] = ContextVar("current_run", default=None)
_on_terminal: ContextVar[bool] = ContextVar("on_terminal", default=True)


@contextmanager
def only_for(run: str, *, on_terminal: bool = True) -> Iterator[None]:
    """Send lines logged inside to this run's log only; other lines go to every open log.

    Args:
        run: name of the run.
        on_terminal: whether the terminal shows them, too; it need not if the same was said of all runs.
    """
    token, shown = _current_run.set(run), _on_terminal.set(on_terminal)
    try:
        yield
    finally:
        _current_run.reset(token)
        _on_terminal.reset(shown)


def write_traceback(error: BaseException) -> None:
    """Write an error's traceback into the open log files; the terminal shows one line elsewhere."""
    log.error("%s", type(error).__name__, exc_info=error, extra={_ONLY_IN_FILES: True})


def note(line: str) -> None:
    """Log a line into the open log files only: the terminal has it from the command itself."""
    log.info("%s", line, extra={_ONLY_IN_FILES: True})


def log_to_terminal() -> None:
    """Log to standard error; standard output is for results."""
    _open_closed_streams()
    handler = _Terminal(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: _on_terminal.get() and not hasattr(record, _ONLY_IN_FILES))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.raiseExceptions = False  # handlers of libraries, on a stream that was closed
    root.setLevel(logging.WARNING)
    logging.getLogger("sae_sweep").setLevel(logging.INFO)


def _open_closed_streams() -> None:
    """Open what the shell closed (`2>&-`); the next file would get its number, and what libraries print."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # what Hydra prints must not end in an error, either


def show(text: str) -> None:
    """Write a result to standard output; nobody has to read it to the end (`| head`).

    Raises:
        SaeSweepError: if it cannot be written.
    """
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(escaped_lines(text).encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        reader_left()
    except OSError as error:
        raise SaeSweepError(f"cannot write to standard output: {error.strerror or error}") from error


def reader_left() -> None:
    """Note that nobody reads standard output any more; what is still written to it is lost."""
    global _reader_left
    _reader_left = True
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def has_reader() -> bool:
    """Whether nothing that was shown met a closed pipe."""
    return not _reader_left


def show_problem(text: str) -> None:
    """Write a line about the command to standard error, if there is anybody to read it."""
    with suppress(OSError):
        sys.stderr.write(f"sae_sweep: {escaped(text)}\n")


@contextmanager
def log_to_files(runs: Sequence[tuple[str, Path]]) -> Iterator[None]:
    """Append to the log file of each run; `runs` holds (name, file) pairs."""
    with ExitStack() as stack:
        for name, path in runs:
            stack.callback(_detach, _attach(name, path))
        yield


def _attach(name: str, path: Path) -> logging.Handler:
    handler = _RunLog(name, path)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda record: _current_run.get() in (None, name))
    logging.getLogger().addHandler(handler)
    return handler


def _detach(handler: logging.Handler) -> None:
    logging.getLogger().removeHandler(handler)
    handler.close()


class _Lines(logging.Formatter):
    """One line per record, whatever its message contains; the lines of a traceback follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return escaped_lines(super().formatException(ei))


@contextmanager
def _bars_aside(stream: Any) -> Iterator[None]:
    """Take progress bars away while a line is written, and show them again below it."""
    bars: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)  # whoever shows bars has imported it
    if bars is None or not getattr(bars, "_instances", None):
        yield
        return
    with bars.external_write_mode(file=stream):
        yield


class _Terminal(logging.StreamHandler[Any]):
    """Standard error; a line that cannot be written is lost, as there is nowhere to say so."""

    def emit(self, record: logging.LogRecord) -> None:
        with _bars_aside(self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


class _RunLog(logging.Handler):
    """A run's log file; the run goes on without it, which is said once.

    The file is open for one line at a time: many runs need few open files, and a removed one comes back.
    """

    def __init__(self, run: str, path: Path) -> None:
        super().__init__()
        self._run = run
        self._path = path
        self._fails = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _append(self._path, f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self._fails = False
        except OSError as error:
            if not self._fails:
                self._fails = True  # first: the warning comes here, too
                with only_for(self._run):
                    why = error.strerror or error
                    log.warning("cannot write %s: %s; the run goes on without these lines", self._path, why)
        except Exception:  # a library's record that cannot be formatted must not end the run
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe in its place, which nobody reads, is an error and no endless wait."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _append(path: Path, line: bytes) -> None:
    """Append a line whole, or not at all."""
    with open(path, "ab", buffering=0, opener=_without_waiting) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
