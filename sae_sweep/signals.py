"""Orderly stops on SIGINT, SIGTERM and SIGUSR2 while a command trains."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sae_sweep.config import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_IMPATIENT_S = 2.0
_LOOK_EVERY_S = 0.2


class StopRequest:
    """Handler of the stop signals: the first raises Interrupted, or is only recorded inside `deferred`.

    Later signals are ignored, so that they cannot cut off a save. The exception is a second Ctrl-C while the
    first still waits for the end of a step: it stops without saving.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first signal that arrived."""
        self._since = 0.0
        self._deferred = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
            if not self._deferred:
                raise Interrupted(signum)
        # One key press can arrive twice (from the terminal and from a parent process such as make).
        elif self._deferred and signum == signal.SIGINT and time.monotonic() - self._since > _IMPATIENT_S:
            raise Interrupted(signum)

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals inside the block; its end, or `raise_if_requested`, raises Interrupted for them."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        self.raise_if_requested()


def wait(seconds: float) -> bool:
    """Sleep, at most until a stop is requested; returns whether none was."""
    handler, until = signal.getsignal(signal.SIGTERM), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if isinstance(handler, StopRequest) and handler.signum is not None:
            return False
        time.sleep(min(left, _LOOK_EVERY_S))
    return True


@contextmanager
def blocked() -> Iterator[None]:
    """Hold back the stop signals inside the block, from child processes too; they act at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handle the stop signals inside the block; restore the previous handlers afterwards."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only, which has to stop this one
        return
    before = {signum: signal.signal(signum, request) for signum in STOP_SIGNALS}
    try:
        yield request
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)
