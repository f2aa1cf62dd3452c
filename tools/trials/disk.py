"""Trials on disks that are full, read-only, limited, or lose a folder meanwhile."""

import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from trials.commands import Ended, command
from trials.follows import FOLLOWS, undisturbed
from trials.stops import MOMENTS, equal
from trials.sweeps import VARIANTS, at_event, fresh, results, words
from trials.verdict import Undisturbed, Verdict, crash, differences, last_line, stray_line

_PLACES = ("multirun", "multirun", "multirun", "cache")


def trial(random: Random, world: Path, place: Path) -> Verdict:
    """Launch a sweep on a bad disk, then again on a good one."""
    choices = [_limited, _deleted, _deleted] + ([_full] * 5 + [_read_only] if can_mount() else [])
    return random.choice(choices)(random, world, place)


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount a small file system."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        with _mounted(folder, 2**20):
            return True
    except subprocess.CalledProcessError:
        return False
    finally:
        folder.rmdir()


@contextmanager
def _mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes over `folder`, with its content."""
    aside = folder.with_name(f"{folder.name}.under")
    shutil.copytree(folder, aside, symlinks=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size // 1024}k", "tmpfs", str(folder))
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(aside)
        yield
    finally:
        _run("umount", "-l", str(folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _begin(random: Random, world: Path, place: Path) -> tuple[str, Path, Undisturbed]:
    """A sweep that was cut or is new, and what a launch makes of it."""
    variant, state = random.choice(tuple(VARIANTS)), random.choice(("cut", "done"))
    folder = fresh(world / variant / state, place)
    if state == "done":
        shutil.rmtree(folder / "multirun")
        (folder / "multirun").mkdir()
    return variant, folder, undisturbed(world, variant, "cut", "relaunch")


def _full(random: Random, world: Path, place: Path) -> Verdict:
    """The disk is full after so many bytes."""
    where = random.choice(_PLACES)
    cached: tuple[str, ...] = ()
    variant, folder, expected = _begin(random, world, place)
    if where == "cache":
        cached, folder = ("activations=cache",), _cut_without_activations(world, variant, folder)
        expected = undisturbed(world, variant, "cut", "cached")
    used = sum(-(-path.stat().st_size // 4096) + 1 for path in (folder / where).rglob("*")) * 4096
    more = random.choice((random.randrange(60_000), random.randrange(600_000), random.randrange(3_000_000)))
    what = f"{variant}, {where} full after {more} bytes"
    with _mounted(folder / where, used + more + 8192):
        ended = command(words(variant, *cached), folder)
        verdict = _bad_disk(ended, folder, expected)
        if verdict.outcome in ("right", "one line"):
            _run("mount", "-o", "remount,size=1g", str(folder / where))
            verdict = _again(verdict, variant, folder, expected, cached)
    return verdict._replace(detail=f"{what}: {verdict.detail}")


def _cut_without_activations(world: Path, variant: str, folder: Path) -> Path:
    """A sweep whose records say as they did before that it was cut, and whose cache is to be filled."""
    shutil.rmtree(folder)
    shutil.rmtree(fresh(world / variant / "cut", folder) / "cache" / "activations")
    return folder


def _read_only(random: Random, world: Path, place: Path) -> Verdict:
    """Nothing can be written."""
    variant, folder, expected = _begin(random, world, place)
    where = random.choice(_PLACES)
    with _mounted(folder / where, 2**30):
        _run("mount", "-o", "remount,ro", str(folder / where))
        verdict = _bad_disk(command(words(variant), folder), folder, expected)
        _run("mount", "-o", "remount,rw", str(folder / where))
        if verdict.outcome in ("right", "one line"):
            verdict = _again(verdict, variant, folder, expected)
    return verdict._replace(detail=f"{variant}, {where} read-only: {verdict.detail}")


def _limited(random: Random, world: Path, place: Path) -> Verdict:
    """No file may be longer than so many bytes (`ulimit -f`)."""
    variant, folder, expected = _begin(random, world, place)
    most = random.choice((random.randrange(4_000, 40_000), random.randrange(40_000, 1_000_000)))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    verdict = _bad_disk(command(words(variant), folder, limit), folder, expected)
    if verdict.outcome in ("right", "one line"):
        verdict = _again(verdict, variant, folder, expected)
    return verdict._replace(detail=f"{variant}, files of at most {most} bytes: {verdict.detail}")


def _deleted(random: Random, world: Path, place: Path) -> Verdict:
    """Somebody deletes a folder while the command runs."""
    variant, folder, expected = _begin(random, world, place)
    event, part, most = random.choice(MOMENTS)
    count = random.randint(1, most)
    gone = random.choice(
        ("multirun/s/*_topk_*", "multirun/s/*_jumprelu_*", "multirun/s", "multirun", "cache")
    )

    def delete() -> None:
        for path in folder.glob(gone):
            shutil.rmtree(path, ignore_errors=True)

    ended = command(words(variant), folder, at_event(event, part, count, delete))
    verdict = _bad_disk(ended, folder, expected, partly=True)
    if verdict.outcome in ("right", "one line"):
        verdict = _again(verdict, variant, folder, expected)
    return verdict._replace(detail=f"{variant}, {gone} deleted at {event} {part} {count}: {verdict.detail}")


def _bad_disk(ended: Ended, folder: Path, expected: Undisturbed, *, partly: bool = False) -> Verdict:
    """Judge a launch on a bad disk: right, or lines that name a path below the folder.

    Args:
        ended: how the command ended.
        folder: the copy that it worked in.
        expected: what it does on a good disk.
        partly: whether results may be missing after all ended well: somebody deleted them.
    """
    wrong = crash(ended, folder)
    if wrong is not None:
        return wrong
    other = differences(results(folder / "multirun"), expected.results)
    if ended.code == 0:
        missing = [name for name in other if (folder / "multirun" / name).exists()]
        good = not missing if partly else not other
        return Verdict("right", "") if good else Verdict("silently wrong", f"{other} differ")
    said = [
        line for line in ended.err.splitlines() if os.sep in line and ("multirun" in line or "cache" in line)
    ]
    stray = stray_line(ended.err)
    if stray or not said:
        return Verdict("unclear", stray or last_line(ended.err))
    return Verdict("one line", said[-1])


def _again(
    first: Verdict, variant: str, folder: Path, expected: Undisturbed, more: tuple[str, ...] = ()
) -> Verdict:
    """Launch again on a good disk: the result is the undisturbed one."""
    ended = command(words(variant, *more), folder) if more else FOLLOWS["relaunch"].run(variant, folder)
    verdict = equal(ended, folder, expected)
    if verdict.outcome == "right":
        return first
    return verdict._replace(detail=f"{first.detail}; launched again: {verdict.detail}")
