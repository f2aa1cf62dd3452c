"""Being told to stop while nothing is half done: no need to wait for the end of a step."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from sae_sweep.config import Interrupted


@contextmanager
def stopped_by(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """The first of these signals raises Interrupted inside, later ones do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    heard = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise Interrupted(signum)

    before = {signum: signal.signal(signum, stop) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@contextmanager
def undisturbed(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals that arrive inside take effect at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
