"""Trials that send a signal at some moment, launch again, and compare with an undisturbed sweep."""

import os
import re
import signal
import time
from collections.abc import Collection
from pathlib import Path
from random import Random

from trials.commands import Ended, command, end, process, session_of
from trials.follows import FOLLOWS, undisturbed
from trials.sweeps import VARIANTS, at_event, content, fresh, results, words
from trials.verdict import Undisturbed, Verdict, crash, differences, last_line, told

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGKILL)
_EVENTS = {
    "open": {
        "config.json": 2,
        "tokenizer": 2,
        "plan.json": 3,
        "config.yaml": 4,
        "history.jsonl": 12,
        "train.log": 3,
        ".so": 1,
        "status.json": 12,
    },
    "os.rename": {
        "state.safetensors": 30,
        "status.json": 12,
        "config.yaml": 3,
        "sae": 3,
        "metrics.json": 3,
        "statistics.parquet": 3,
        "matching": 5,
    },
    "os.remove": {"": 9},
    "os.mkdir": {"": 9},
    "shutil.rmtree": {"checkpoint": 3},
    "socket.__new__": {"": 1},
}
MOMENTS = tuple((event, *moment) for event, moments in _EVENTS.items() for moment in moments.items())
"""Audit events of Python, a part of the path, and how often a sweep has it."""
_FILES = (
    "plan.json",
    "jobs/0.log",
    "*/train.log",
    "*/checkpoint/state.safetensors",
    "*/sae",
    "*/metrics.json",
)
"""Files of a sweep in the order in which they appear."""


def at_moment(random: Random, world: Path, place: Path) -> Verdict:
    """Send a signal from within, as a certain file is opened, renamed or removed."""
    variant, number = random.choice(tuple(VARIANTS)), random.choice(SIGNALS)
    event, part, most = random.choice(MOMENTS)
    count, begun = random.randint(1, most), random.random() < 0.5
    folder = fresh(world / variant / ("cut" if begun else "done"), place)
    if not begun:
        (folder / "multirun").rename(folder / "old")
    stop = at_event(event, part, count, lambda: os.kill(os.getpid(), number))
    ended = command(words(variant), folder, stop)
    what = f"{variant} {'cut' if begun else 'new'}, {number.name} at {event} {part} {count}"
    return _then_again(ended, number, variant, folder, world, what)


def in_process(random: Random, world: Path, place: Path) -> Verdict:
    """Send a signal from outside to a command in a process of its own, mostly with worker processes."""
    number, launcher = random.choice(SIGNALS), random.choice(("local", "local", "local", "inprocess"))
    folder = fresh(world / "files" / random.choice(("cut", "done")), place)
    if not (folder / "multirun" / "s" / "jobs").exists():
        (folder / "multirun").rename(folder / "old")
    group = random.choice((1, 3))
    typed = words("files", f"launcher={launcher}", f"launcher.max_group={group}")
    started = process(typed, folder)
    file, after_s = random.choice(_FILES), random.expovariate(3.0)
    while started.poll() is None and not list((folder / "multirun" / "s").glob(file)):
        time.sleep(0.01)
    time.sleep(after_s)
    whole_group = number != signal.SIGKILL and random.random() < 0.3  # as a terminal does
    if started.poll() is None:
        (os.killpg if whole_group else os.kill)(started.pid, number)
    if number == signal.SIGKILL:
        started.wait()
        _wait_for_workers(started.pid)
    ended = end(started, folder)
    what = f"launcher={launcher}, max_group={group}, {number.name} {after_s:.1f} s after {file}"
    return _then_again(ended, number, "files", folder, world, what)


def _wait_for_workers(session: int, limit_s: float = 60.0) -> None:
    """Workers of a killed command end by themselves, or are found as orphans."""
    until = time.monotonic() + limit_s
    while session_of(session) and time.monotonic() < until:
        time.sleep(0.1)


def _then_again(
    ended: Ended, number: signal.Signals, variant: str, folder: Path, world: Path, what: str
) -> Verdict:
    """Judge the stopped command, then launch again and compare."""
    wrong = _stopped_badly(ended, number, folder)
    if wrong is not None:
        return wrong._replace(detail=f"{what}: {wrong.detail}")
    expected = undisturbed(world, variant, "cut", "relaunch")
    again = FOLLOWS["relaunch"].run(variant, folder)
    verdict = equal(again, folder, expected)
    return verdict._replace(detail=f"{what}, launched again: {verdict.detail}")


def _stopped_badly(ended: Ended, number: signal.Signals, folder: Path) -> Verdict | None:
    training = "already done" in ended.err
    if ended.code == -number and (number == signal.SIGKILL or not training):
        return None
    wrong = crash(ended, folder)
    if wrong is not None:
        return wrong
    if ended.code not in (0, 128 + number):
        return Verdict("unclear", f"exit code {ended.code}: {last_line(ended.err)}")
    failed = [
        path.parent.name
        for path in folder.glob("multirun/s/*/status.json")
        if (content(path) or {}).get("state") == repr("failed")
    ]
    return Verdict("spread", f"marked failed: {failed}: {last_line(ended.err)}") if failed else None


def equal(
    ended: Ended, folder: Path, expected: Undisturbed, *, but: str = "^$", known: Collection[Path] = ()
) -> Verdict:
    """Judge a launch that nothing disturbs: it must end with 0 and the undisturbed result.

    Args:
        ended: how it ended.
        folder: the copy that it worked in.
        expected: the undisturbed result.
        but: names of files that may differ, as a regular expression.
        known: temporary files that were there before.
    """
    wrong = crash(ended, folder, known)
    if wrong is not None:
        return wrong
    if ended.code != 0:
        return Verdict("unclear", f"exit code {ended.code}: {last_line(ended.err)}")
    there = {str(path.relative_to(folder / "multirun")) for path in known if "multirun" in path.parts}
    found = differences(results(folder / "multirun"), expected.results)
    other = [name for name in found if name not in there and not re.search(but, name)]
    if other or told(ended.out) != told(expected.out):
        return Verdict("silently wrong", f"{other or 'output'} differ")
    return Verdict("right", "")
