"""Stopping in an orderly way: a signal is remembered, and acted upon when a step is complete."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from sae_sweep.config import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_IMPATIENT_S = 2.0


class StopRequest:
    """A signal handler that only takes a note, but for a second Ctrl-C, which stops without saving."""

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first signal that arrived."""
        self._since = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        # One key press can arrive twice (from the terminal and from a parent process such as make).
        elif signum == signal.SIGINT and time.monotonic() - self._since > _IMPATIENT_S:
            raise Interrupted(signum)

    def obey(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)


def _stop_now(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


@contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Take note of the stop signals inside; the handlers from before come back afterwards."""
    request = StopRequest()
    with _handled_by(request):
        yield request


def stop_at_once() -> AbstractContextManager[None]:
    """Inside, a stop signal raises Interrupted wherever it arrives: for work that is safe to cut anywhere."""
    return _handled_by(_stop_now)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread alone: whoever runs that one has to stop us.
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)
