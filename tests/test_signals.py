"""Signals stop at once, or are noted and obeyed between steps; the handlers come back."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from sae_sweep.config import Interrupted
from sae_sweep.signals import STOP_SIGNALS, blocked, stop_signals


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_stops_at_once(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=signum.name), stop_signals():
        signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_deferred_signal_is_noted_until_it_is_obeyed(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with stop_signals() as stop:
        deferred = stop.deferred()
        deferred.__enter__()
        stop.raise_if_requested()
        signal.raise_signal(signum)
        signal.raise_signal(signum)  # the same key press, from a parent process
        assert stop.signum == signum
        with pytest.raises(Interrupted, match=signum.name):
            stop.raise_if_requested()
    assert signal.getsignal(signum) is before


def test_the_end_of_the_block_obeys_what_was_deferred() -> None:
    with stop_signals() as stop:
        deferred = stop.deferred()
        deferred.__enter__()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            deferred.__exit__(None, None, None)


def test_later_signals_do_not_cut_the_way_out() -> None:
    with stop_signals():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_does_not_wait_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_signals() as stop:
        deferred = stop.deferred()
        deferred.__enter__()
        signal.raise_signal(signal.SIGINT)
        later = time.monotonic() + 3
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_no_broad_except_swallows_a_stop() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")

    with stop_signals(), pytest.raises(Interrupted):
        work()


def test_a_blocked_signal_reaches_no_child_and_acts_at_the_end() -> None:
    with stop_signals(), pytest.raises(Interrupted):
        _submit_while_interrupted()


def _submit_while_interrupted() -> None:
    with blocked():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
        child.send_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert child.wait(30) == 0
    pytest.fail("the signal did nothing")


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with stop_signals() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.signum))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
