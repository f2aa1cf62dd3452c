"""Signals are noted, obeyed between steps, and handed back."""

import signal
import threading
import time

import pytest

from sae_sweep.signals import STOP_SIGNALS, stop_at_once, watch_signals
from sae_sweep.training import Interrupted


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_is_only_noted(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with watch_signals() as stop:
        stop.obey()
        signal.raise_signal(signum)
        signal.raise_signal(signum)  # the same key press, from a parent process
        assert stop.signum == signum
        with pytest.raises(Interrupted, match=signum.name):
            stop.obey()
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_what_may_be_cut_anywhere_stops_at_once(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=signum.name), stop_at_once():
        signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with watch_signals():
        signal.raise_signal(signal.SIGINT)
        later = time.monotonic() + 3
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with watch_signals() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.signum))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
