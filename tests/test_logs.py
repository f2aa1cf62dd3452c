"""Logs and results: one line each, whatever it contains, and no traceback of logging's own."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep import logs
from sae_sweep.logs import log_to_files, log_to_terminal, only_for, show
from tests.disks import fill_up

EVIL = "a\nb\r\x1b[31mred\x07 \u202eoffline\u2028 \x85\udcff"
SHOWN = r"a\nb\r\x1b[31mred\x07 \u202eoffline\u2028 \x85\udcff"
log = logging.getLogger("sae_sweep.test")


pytestmark = pytest.mark.usefixtures("logging_kept")


def test_control_characters_are_shown_in_terminal_and_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_terminal()
    with log_to_files([("run", tmp_path / "train.log")]):
        log.warning("name %s", EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.exception("failed")
    terminal, lines = capsys.readouterr().err, (tmp_path / "train.log").read_text().splitlines()
    assert f"name {SHOWN}\n" in terminal
    assert lines[0].endswith(f"WARNING sae_sweep.test: name {SHOWN}")
    assert lines[1].endswith("ERROR sae_sweep.test: failed")
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-1].endswith(r"b\r\x1b[31mred\x07 \u202eoffline\u2028 \x85\udcff")
    assert "\x1b" not in terminal


def test_a_line_goes_to_its_run_only(tmp_path: Path) -> None:
    with log_to_files([(name, tmp_path / f"{name}.log") for name in "ab"]):
        log.warning("for both")
        with only_for("a"):
            log.warning("for a")
    assert [(tmp_path / f"{name}.log").read_text().count("\n") for name in "ab"] == [2, 1]


def test_what_was_said_of_all_runs_is_in_each_log_and_not_again_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_terminal()
    with log_to_files([(name, tmp_path / f"{name}.log") for name in "ab"]):
        log.error("the text ends")
        for name in "ab":
            with only_for(name, on_terminal=False):
                log.error("%s: the text ends", name)
        log.error("after")
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        "the text ends",
        "after",
    ]
    assert (tmp_path / "a.log").read_text().count("the text ends") == 2


@pytest.mark.parametrize(
    ("obstacle", "why"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path.parent / "no" / "where"), "No such file or directory"),
        (lambda path: path.symlink_to("/dev/full"), "No space left on device"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_a_run_goes_on_without_its_log_and_this_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], obstacle: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "train.log"
    obstacle(path)
    log_to_terminal()
    with log_to_files([("run", path), ("other", tmp_path / "other.log")]):
        for number in range(3):
            log.warning("line %d", number)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 4
    assert f"cannot write {path}: {why}; the run goes on without these lines\n" in shown
    assert "Logging error" not in shown
    assert (tmp_path / "other.log").read_text().count("\n") == 3


def test_a_log_on_a_full_disk_has_whole_lines_and_goes_on_once_there_is_room(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_disk / "train.log"
    log_to_terminal()
    with log_to_files([("run", path)]):
        log.warning("first")
        fill_up(small_disk)
        log.warning("x" * 5000)
        fill_up(small_disk, 2**16)
        log.warning("last")
    first, warning, last = path.read_text().splitlines()  # the warning just fits
    assert (first.split()[-1], last.split()[-1]) == ("first", "last")
    assert "cannot write" in warning
    assert "cannot write" in capsys.readouterr().err


def test_a_log_that_is_removed_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    with log_to_files([("run", path)]):
        log.warning("first")
        path.unlink()
        log.warning("second")
    assert path.read_text().endswith("second\n")


COMMAND = """
import logging, sys
from sae_sweep import logs
from sae_sweep.config import SaeSweepError
logs.log_to_terminal()
for number in range(50):
    logging.getLogger("sae_sweep").info("line %d", number)
logs.show_problem("a problem")
try:
    logs.show("result\\n" * 20_000)
except SaeSweepError as error:
    logs.show_problem(str(error))
    sys.exit(1)
"""


def run(redirections: str, command: str = COMMAND, **environment: str) -> subprocess.CompletedProcess[str]:
    shell = ["bash", "-c", f'exec 3>&1; {{ "$0" -c "$1"; echo "exit code $?" >&3; }} {redirections}']
    return subprocess.run(
        [*shell, sys.executable, command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("redirections", "code", "shown"),
    [
        ("2>/dev/full >/dev/null", 0, ""),
        ("2>&- >/dev/null", 0, ""),
        (">&- 2>/dev/null", 0, ""),
        ("2>&1 >/dev/null | head -c 1 >/dev/null", 0, ""),
        ("2>/dev/null | head -c 1 >/dev/null", 0, ""),
        ("2>&1 >/dev/full | grep -v line", 1, "cannot write to standard output: No space left on device"),
    ],
)
def test_streams_that_cannot_be_written(redirections: str, code: int, shown: str) -> None:
    done = run(redirections)
    assert f"exit code {code}\n" in done.stdout
    assert shown in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Logging error" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", ["--help", "task=status sweep=mine", "--hydra-help"])
def test_a_command_that_is_not_read_to_its_end_exits_as_after_sigpipe(tmp_path: Path, words: str) -> None:
    runs = [{"name": f"run{number}", "id": "id", "config": {"tokens": 1}} for number in range(2)]
    (tmp_path / "multirun" / "mine").mkdir(parents=True)
    (tmp_path / "multirun" / "mine" / "plan.json").write_text(json.dumps({"sweep": "mine", "runs": runs}))
    command = f"{sys.executable} -m sae_sweep {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout == "141\n"
    assert done.stderr == ""


def test_a_terminal_without_unicode_gets_escapes() -> None:
    command = "from sae_sweep.logs import show; show('R² … 中\\n')"
    done = run("", command, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stdout == "R\\xb2 \\u2026 \\u4e2d\nexit code 0\n"


def test_a_result_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\tb\n\x1b[0mc\n")
    assert capsys.readouterr().out == "a\\tb\n\\x1b[0mc\n"
    logs.show_problem("one\ntwo")
    assert capsys.readouterr().err == "sae_sweep: one\\ntwo\n"


def test_a_record_that_cannot_be_formatted_does_not_end_the_run(tmp_path: Path) -> None:
    with log_to_files([("run", tmp_path / "train.log")]):
        record = logging.makeLogRecord({"name": "library", "msg": "%d", "args": ("text",)})
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logs._RunLog):
                handler.handle(record)
        log.warning("the next line")
    assert (tmp_path / "train.log").read_text().count("\n") == 1
