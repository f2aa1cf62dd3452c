"""Signals stop at once, or are noted and obeyed between steps; none is lost; the handlers come back."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from sae_sweep.signals import STOP_SIGNALS, Interrupted, blocked, deferred, obeyed, stop_signals


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_stops_at_once(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=signum.name), stop_signals():
        signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_deferred_signal_is_noted_until_it_is_obeyed(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with suppress(Interrupted), stop_signals() as stop:
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
    with suppress(Interrupted), stop_signals() as stop:
        deferred = stop.deferred()
        deferred.__enter__()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            deferred.__exit__(None, None, None)


def test_later_signals_do_not_cut_the_way_out() -> None:
    with suppress(Interrupted), stop_signals():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_does_not_wait_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with suppress(Interrupted), stop_signals() as stop:
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

    with pytest.raises(Interrupted), stop_signals():
        work()


def test_a_stop_that_a_library_swallows_acts_at_the_end_of_the_block() -> None:
    with (
        pytest.raises(Interrupted, match="SIGTERM"),
        stop_signals(),
        pytest.raises(Interrupted, match="SIGTERM"),
        obeyed(),
        suppress(Interrupted),
    ):
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_that_a_library_turns_into_an_error_is_still_a_stop() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("the import failed") from error

    with pytest.raises(Interrupted, match="SIGTERM"), stop_signals():
        work()


def test_an_error_without_a_stop_stays_one() -> None:
    with pytest.raises(RuntimeError, match="other"), stop_signals(), obeyed():
        raise RuntimeError("other")


def test_nothing_is_raised_for_a_library_while_signals_are_deferred() -> None:
    """A stop during a step must reach the end of the step, where all is saved."""
    steps = []

    def step() -> None:
        with obeyed():
            signal.raise_signal(signal.SIGTERM)
        steps.append("saved")

    with pytest.raises(Interrupted), stop_signals() as stop, stop.deferred():
        step()
    assert steps == ["saved"]


def test_the_way_out_is_not_cut_off() -> None:
    closed = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for name in ("one", "other"):
                with obeyed():
                    closed.append(name)

    with pytest.raises(Interrupted), stop_signals():
        work()
    assert closed == ["one", "other"]


def test_a_stop_in_a_finaliser_is_raised_again() -> None:
    """Python drops an exception that is raised in `__del__`."""

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Dropped()
        time.sleep(30)
        pytest.fail("the stop was lost")

    with pytest.raises(Interrupted), stop_signals():
        work()


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    """As `nohup` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_blocks_within_each_other_share_one_handler() -> None:
    with suppress(Interrupted), stop_signals() as outer:
        with suppress(Interrupted), stop_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner is outer
        assert outer.signum == signal.SIGTERM


def test_a_blocked_signal_reaches_no_child_and_acts_at_the_end() -> None:
    with pytest.raises(Interrupted), stop_signals():
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


def test_files_that_belong_together_are_written_before_a_stop() -> None:
    written = []

    def write() -> None:
        with deferred():
            for name in "ab":
                signal.raise_signal(signal.SIGTERM)
                written.append(name)
        written.append("c")

    with pytest.raises(Interrupted, match="SIGTERM"), stop_signals():
        write()
    assert written == ["a", "b"]
    with deferred():  # where nobody listens, as in a notebook
        written.append("d")
    assert written[-1] == "d"


def run(code: str, **keys: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose stop signals are handled from its start to its end."""
    start = "import os, signal\nfrom sae_sweep import signals\nstop = signals.listen()\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **keys)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_before_the_work_ends_the_process_with_one_line(signum: signal.Signals) -> None:
    done = run(f"signal.raise_signal({int(signum)})\nos._exit(0)")
    assert done.returncode == 128 + signum
    assert done.stderr == f"sae_sweep: stopped by {signum.name}; there is nothing to save\n"


def test_during_an_import_a_signal_ends_the_process() -> None:
    """An exception could be lost there, or leave a traceback."""
    done = run("""
        with signals.stop_signals():
            with signals.at_once():
                signal.raise_signal(signal.SIGTERM)
        """)
    assert done.returncode == 143
    assert done.stderr == "sae_sweep: stopped by SIGTERM; there is nothing to save\n"


def test_a_signal_after_the_work_ends_the_process_with_one_line() -> None:
    done = run("""
        import atexit
        atexit.register(signal.raise_signal, signal.SIGTERM)
        with signals.stop_signals():
            pass
        signals.finish(0)
        """)
    assert (done.returncode, done.stderr) == (
        143,
        "sae_sweep: stopped by SIGTERM; there is nothing to save\n",
    )


@pytest.mark.parametrize(("end", "code"), [("signals.finish(3)", 3), ("", 0)])
def test_no_signal_reaches_the_interpreters_last_moments(end: str, code: int) -> None:
    """Handlers are gone there, so that a signal would end the process without a word."""
    done = run(f"""
        import atexit
        atexit.register(print, "exit functions run")
        class AtTheVeryEnd:
            def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGTERM):
                kill(pid, signum)
        kept = AtTheVeryEnd()
        {end}
        """)
    assert (done.returncode, done.stdout, done.stderr) == (code, "exit functions run\n", "")


def test_a_second_signal_on_the_way_out_adds_no_line() -> None:
    done = run("""
        try:
            with signals.stop_signals():
                signal.raise_signal(signal.SIGTERM)
        except signals.Interrupted:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            raise SystemExit(7)
        """)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_pipe_without_a_writer_stops_its_reader_as_sigterm_does() -> None:
    done = run(
        """
        import time
        try:
            with signals.stop_signals():
                signals.stop_at_end_of(0)
                time.sleep(30)
        except signals.Interrupted as interrupted:
            raise SystemExit(f"saved; {interrupted}")
        """,
        input="",
    )
    assert done.stderr.startswith("saved; stopped by SIGTERM; ")


@pytest.mark.parametrize("module", ["sae_sweep.cli", "hydra", "omegaconf.dictconfig", "sae_sweep.tasks.plan"])
def test_a_command_handles_signals_before_it_imports_anything_heavy(module: str) -> None:
    """A finder that imports nothing itself sends the signal when the module's import begins."""
    code = f"""
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["sae-sweep", "task=plan", "model=gpt2-pico"]
from sae_sweep.__main__ import main
main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "sae_sweep: stopped by SIGINT; there is nothing to save\n"
