"""Orderly stops on SIGINT, SIGTERM, SIGUSR2 and SIGHUP, from the first import of a command to its exit.

Only what imports in a few milliseconds is imported here (not even typing), because the handlers must be in
place before anything that takes time.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | int | None
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
_IMPATIENT_S = 2.0
_AGAIN_AFTER_S = 0.05
_LOOK_EVERY_S = 0.2


class Interrupted(BaseException):
    """A stop signal arrived and the state is saved; the process should exit with 128 + `signum`."""

    def __init__(self, signum: int, what_now: str = "launch the same command again to resume") -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what_now}")


class StopRequest:
    """Handler of the stop signals: the first raises Interrupted, or is only recorded inside `deferred`.

    Later signals are ignored, so that they cannot cut off a save. The exception is a second Ctrl-C while the
    first still waits for the end of a step: it stops without saving.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first signal that arrived."""
        self.at_once = False
        """Whether the first signal ends the process at once, with one line: there is nothing to save."""
        self.owns_process = False
        """Whether it handles signals until the process ends (`listen`)."""
        self.exit_code: int | None = None
        """Exit code of the process once its work is over (`finish`)."""
        self._since = 0.0
        self._deferred = False
        self._lost = False
        self._other_hook = sys.unraisablehook

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
            if self.at_once:
                _end_process(signum, f"stopped by {signal.Signals(signum).name}; there is nothing to save")
            if not self._deferred:
                raise Interrupted(signum)
        elif self._lost and not self._deferred:
            self.raise_if_requested()
        # One key press can arrive twice (from the terminal and from a parent process such as make).
        elif signum == signal.SIGINT and time.monotonic() - self._since > _IMPATIENT_S:
            if self.at_once:
                _end_process(self.signum)
            if self._deferred:
                raise Interrupted(signum)

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signum is not None:
            self._lost = False
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

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Raise Interrupted for a signal that a library in the block swallowed, or made another error of.

        It does nothing inside `deferred`, where signals raise nothing, and on the way out after a signal.
        """
        watched = self.signum is None and not self._deferred
        try:
            yield
        except Exception:
            if watched:
                self.raise_if_requested()
            raise
        if watched:
            self.raise_if_requested()

    @contextmanager
    def set_at_once(self, value: bool) -> Iterator[None]:
        """Set `at_once` inside the block."""
        before, self.at_once = self.at_once, value
        try:
            yield
        finally:
            self.at_once = before

    def raise_again(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise a stop once more that was raised where no exception can pass, such as in `__del__`."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._other_hook(unraisable)
            return
        self._lost = True
        arguments = (threading.main_thread().ident, unraisable.exc_value.signum)
        again = threading.Timer(_AGAIN_AFTER_S, signal.pthread_kill, arguments)
        again.daemon = True
        again.start()

    def skip_teardown(self) -> None:
        """End the process in place of the interpreter's last steps, in which it handles no signals.

        It would take half a second to dismantle torch. After an error the interpreter ends as usual.
        """
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # the reader or the terminal is gone
            if self.exit_code == 0:
                self.exit_code = None  # results were lost: the interpreter's own exit says so
        if self.exit_code is not None:
            os._exit(self.exit_code)
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)


_current: StopRequest | None = None
"""The handler that is installed in this process."""


def listen() -> StopRequest:
    """Handle the stop signals until this process ends; outside `stop_signals` they end it at once."""
    request = StopRequest()
    request.at_once = request.owns_process = True
    if threading.current_thread() is threading.main_thread():
        _install(request)
        atexit.register(request.skip_teardown)  # the first to be registered is the last to be called
    return request


def finish(exit_code: int) -> None:
    """Exit with a code once all work is over: other exit functions run, and the rest is skipped."""
    if _current is not None:
        _current.exit_code = exit_code
    sys.exit(exit_code)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Raise Interrupted for a stop signal inside the block; restore the previous handlers afterwards."""
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()  # Python delivers signals to the main thread only, which has to stop this one
        return
    if _current is not None:
        with _current.set_at_once(False), _current.obeyed():
            yield _current
        return
    request = StopRequest()
    hook, before = sys.unraisablehook, _install(request)
    try:
        with request.obeyed():
            yield request
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)
        sys.unraisablehook = hook
        _current = None


@contextmanager
def at_once() -> Iterator[None]:
    """Let a stop signal end a command at once inside the block, in which it must have nothing to save.

    This is for imports: an exception that arrives in them can leave half a module behind, or a traceback.
    """
    if _current is None or not _current.owns_process:
        yield
        return
    with _current.set_at_once(True):
        yield


@contextmanager
def obeyed() -> Iterator[None]:
    """Raise Interrupted if a library in the block swallows a stop, or makes another error of it."""
    if _current is None:
        yield
        return
    with _current.obeyed():
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Let files that belong together be written whole: a stop inside the block acts at its end."""
    if _current is None:
        yield
        return
    with _current.deferred():
        yield


def raise_if_requested() -> None:
    """Raise Interrupted if a stop signal has arrived, even one that is deferred."""
    if _current is not None:
        _current.raise_if_requested()


def wait(seconds: float) -> bool:
    """Sleep, at most until a stop is requested; returns whether none was."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if _current is not None and _current.signum is not None:
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


def unblock() -> None:
    """Let the stop signals in that the parent process `blocked` while it started this one."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def stop_at_end_of(descriptor: int) -> None:
    """Stop this process as SIGTERM does once a pipe has no writer: the process at its other end is gone."""
    main = threading.main_thread().ident

    def wait_for_end() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:  # nothing was given to read from
            return
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)

    threading.Thread(target=wait_for_end, name="stop_at_end_of", daemon=True).start()


def _install(request: StopRequest) -> dict[signal.Signals, _Handler]:
    """Make a request the handler of the stop signals; returns the previous handlers."""
    global _current
    _current = request
    sys.unraisablehook = request.raise_again
    return {signum: signal.signal(signum, request) for signum in STOP_SIGNALS if not _kept(signum)}


def _kept(signum: signal.Signals) -> bool:
    """Whether a signal stays ignored: `nohup` starts a command so that it outlives its terminal."""
    return signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN


def _end_process(signum: int, line: str = "") -> None:
    """End the process without the interpreter's own exit, which could trip over what was cut short."""
    if line:
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"sae_sweep: {line}\n".encode())
    os._exit(128 + signum)
