"""Progress of a group: a bar on a terminal, elsewhere a line about once a minute."""

import fcntl
import io
import logging
import os
import pty
import struct
import sys
import termios
from contextlib import suppress

import pytest

from sae_sweep import progress
from sae_sweep.logs import log_to_terminal
from sae_sweep.progress import Progress, shown_means


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def terminal(patch: pytest.MonkeyPatch) -> Terminal:
    """Put one in place; no fixture, for pytest's capture changes standard error after setup."""
    shown = Terminal()
    patch.setattr(sys, "stderr", shown)
    return shown


def everything(ours: int) -> bytes:
    """All that a closed terminal was sent: one read returns what the kernel has passed on so far."""
    parts = []
    with os.fdopen(ours, "rb", buffering=0) as sent, suppress(OSError):  # the end, on Linux
        while part := sent.read(65536):
            parts.append(part)
    return b"".join(parts)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_terminal_without_columns_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as shown:
        monkeypatch.setattr(sys, "stderr", shown)
        for columns, bar in ((0, False), (80, True)):
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            one = Progress("docs", 1_000_000)
            assert (one._bar is not None) == bar
            one.close()
    os.close(ours)


def test_without_a_terminal_there_is_a_line_before_a_minute_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    bar = Progress("docs", 1_000_000, initial=100_000)
    for second in range(180):
        clock.now = 1000.0 + second
        assert bar.due == (second % 50 == 0 and second > 0)
        bar.show(100_000 + 1000 * second, {"loss": "0.5", "L0": "16"})
    bar.close()
    assert caplog.messages == [
        "docs: 150k of 1.00M tokens (15%), 1.00k tokens/s, 14:10 left, loss 0.5, L0 16",
        "docs: 200k of 1.00M tokens (20%), 1.00k tokens/s, 13:20 left, loss 0.5, L0 16",
        "docs: 250k of 1.00M tokens (25%), 1.00k tokens/s, 12:30 left, loss 0.5, L0 16",
    ]


def test_slow_steps_have_seconds_each(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line = Progress("transfer", 10, unit="evaluations")
    clock.now += 51
    line.show(3, {})
    assert caplog.messages == ["transfer: 3 of 10 evaluations (30%), 17.00 s each, 01:59 left"]
    shown = terminal(monkeypatch)
    bar = Progress("transfer", 10, unit="evaluations")
    assert bar._bar is not None
    assert "17.00 s each" in bar._bar.format_meter(3, 10, 51, unit=" evaluations")
    bar.close()
    assert "s/ evaluations" not in shown.getvalue()


def test_a_bar_fits_a_narrow_terminal_and_an_ascii_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with open(theirs, "w", encoding="ascii", errors="strict") as narrow:
        monkeypatch.setattr(sys, "stderr", narrow)
        bar = Progress("stdlib_docs seed 42", 200_000)
        assert bar.due
        bar.show(100_000, {"loss": "0.1234", "L0": "16"})
        bar.show(50_000, {})  # a run that started over
        bar.close()
    frames = everything(ours).decode("ascii").replace("\n", "\r").split("\r")
    assert any("25%" in frame for frame in frames)
    assert all(len(frame) <= 40 for frame in frames)


@pytest.mark.usefixtures("logging_kept")
def test_a_logged_line_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    log_to_terminal()
    bar = Progress("docs", 100)
    shown.truncate(0)
    logging.getLogger("sae_sweep.test").info("a line")
    bar.close()
    cleared, _, after = shown.getvalue().partition("a line\n")
    assert cleared.strip(" \r\0:0123456789") == ""
    assert "\r" + " " * 20 in cleared  # the bar made room
    assert "docs:" in after


def test_means_are_of_all_points_whatever_their_section() -> None:
    assert shown_means([{"loss": 1.0, "l0": 4}, {"loss": 2.0, "l0": 6}]) == {"loss": "1.5", "L0": "5"}
    assert shown_means([{"train/loss": 1.0, "train/dead": 7}]) == {"loss": "1", "dead": "7"}
    assert shown_means([{}, {"loss": None}]) == {}  # type: ignore[dict-item]
    assert shown_means([]) == {}
