"""One process at a time: who holds a run folder, and who writes what belongs to a sweep."""

import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sae_sweep.config import SaeSweepError
from sae_sweep.store.atomic import disk_error
from sae_sweep.store.paths import RunFolder, SweepFolder

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")
"""A file's name between a dot and what `tempfile` adds."""
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@contextmanager
def hold(run: RunFolder) -> Iterator[None]:
    """Let one process at a time own a run folder; what a killed one left half-written there is removed.

    Raises:
        SaeSweepError: naming the process that holds it.
    """
    with _open_lock(run.root) as lock:
        if not _lock_alone(lock):
            lock.seek(0)
            raise SaeSweepError(
                f"{run.root} is held by process {lock.read().strip()}: wait for it, or stop it"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        _remove_leftovers(run.root)
        yield


@contextmanager
def hold_sweep(sweep: SweepFolder) -> Iterator[None]:
    """Wait for, and have, the sole right to write what belongs to the sweep as a whole (plan, analysis)."""
    with _open_lock(sweep.root) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sweep.root.glob(".*"):
            _remove_if_leftover(path)
        _remove_leftovers(sweep.root / "analysis")
        yield


def _open_lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / _LOCK).open("a+")
    except OSError as error:
        raise disk_error(folder, error) from error


def _remove_leftovers(folder: Path) -> None:
    """What `write_atomic` and `write_folder_atomic` were writing when their process was killed."""
    for path in sorted(folder.rglob(".*")):
        _remove_if_leftover(path)


def _remove_if_leftover(path: Path) -> None:
    if not _TEMPORARY.fullmatch(path.name):
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock_alone(lock: TextIO) -> bool:
    """Take the lock, unless another process keeps it; one that only asked `is_held` is gone at once."""
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_PAUSE_S)
    return False


def is_held(run: RunFolder) -> bool:
    """Whether a process holds the run folder; writes nothing, and keeps nobody from holding it."""
    try:
        lock = (run.root / _LOCK).open("r")
    except OSError:
        return False  # nobody ever held it
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
