"""Stopping in an orderly way: what SIGINT, SIGTERM and SIGUSR2 do while a command trains."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sae_sweep.config import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_IMPATIENT_S = 2.0


class StopRequest:
    """Handles the stop signals: the first one raises Interrupted at once or, where `deferred`, is noted.

    Later signals do nothing, so that nothing cuts the saving on the way out; except a second Ctrl-C while the
    first one is still waiting for the end of a step, which stops without saving.
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

    def obey(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted: `obey` acts on it, and so does the end of the block."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        self.obey()


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handle the stop signals inside; the handlers from before come back afterwards."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread alone: whoever runs it has to stop us
        return
    before = {signum: signal.signal(signum, request) for signum in STOP_SIGNALS}
    try:
        yield request
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)
