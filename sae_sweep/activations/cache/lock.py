"""One writer at a time: a lock file that says whose it is, and is touched while its owner lives."""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_sweep.activations.cache.layout import CacheFolder
from sae_sweep.config import SaeSweepError
from sae_sweep.store import disk_error, write_json

HEARTBEAT_S = 5.0
"""Seconds between two touches of a lock file."""
DEAD_AFTER_S = 60.0
"""A lock file that was not touched for so many seconds has lost its owner."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    host: str
    processes: str
    """Namespace of the pid: containers on one host each count their own."""
    pid: int
    since: str
    token: str
    """Tells two owners apart, whatever else is the same."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder(folder: CacheFolder) -> Owner | None:
    """Who is writing into a folder; None where nobody is, or the one who did is dead."""
    found = _read(folder.lock)
    return found[0] if found is not None and _alive(*found) else None


@contextmanager
def try_to_hold(folder: CacheFolder) -> Iterator["Lock | None"]:
    """Own a stream's folder, taking over from a dead owner; None if somebody else does.

    Raises:
        SaeSweepError: if the folder cannot be written.
    """
    mine = _me()
    if not _acquire(folder, mine):
        yield None
        return
    lock = Lock(folder, mine)
    try:
        yield lock
    finally:
        lock.release()


class Lock:
    """A held lock, touched by a thread of its own."""

    def __init__(self, folder: CacheFolder, mine: Owner) -> None:
        self._folder = folder
        self._mine = mine
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="cache-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise SaeSweepError if it was taken over: this process had stopped for too long."""
        found = _read(self._folder.lock)
        if found is None or found[0].token != self._mine.token:
            owner = "nobody" if found is None else str(found[0])
            raise SaeSweepError(
                f"{self._folder.root} is now written by {owner}: this process did not run for more than "
                f"{DEAD_AFTER_S:g} s; launch the same command again"
            )

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with _guarded(self._folder):
            found = _read(self._folder.lock)
            if found is not None and found[0].token == self._mine.token:
                self._folder.lock.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                self.check()
                os.utime(self._folder.lock)
            except (OSError, SaeSweepError):
                return  # the writer finds out before it says that a shard is complete


def _acquire(folder: CacheFolder, mine: Owner) -> bool:
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder.root, error) from error
    with _guarded(folder):
        if holder(folder) is not None:
            return False
        write_json(folder.lock, asdict(mine))
        return True


@contextmanager
def _guarded(folder: CacheFolder) -> Iterator[None]:
    """Two processes that find the same dead owner must not both take over."""
    try:
        guard = folder.guard.open("a")
    except OSError as error:
        raise disk_error(folder.guard, error) from error
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _read(lock: Path) -> tuple[Owner, float] | None:
    """The owner that a lock file names, and seconds since it was touched."""
    try:
        age = time.time() - lock.stat().st_mtime
        text = lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SaeSweepError(f"cannot read {lock}: {error.strerror or error}") from error
    try:
        return Owner(**json.loads(text)), age
    except (ValueError, TypeError):
        return Owner("an unknown host", "", 0, "an unknown time", ""), age


def _alive(owner: Owner, age: float) -> bool:
    if age > DEAD_AFTER_S:
        return False
    here = _me()
    if (owner.host, owner.processes) != (here.host, here.processes):
        return True  # only its heartbeat can be seen from here
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _me() -> Owner:
    try:
        processes = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        processes = ""  # not Linux
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Owner(platform.node(), processes, os.getpid(), since, uuid.uuid4().hex)
