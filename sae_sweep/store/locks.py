"""Locks that let one process at a time into a run folder, a sweep or a stream of the cache.

Both kinds are filelock's. The kernel's lock (`flock`) is free as soon as its process is gone. A `Lease` is a
marker file that its owner keeps touching; it serves file systems without `flock`, and the cache, which hosts
may share.
"""

import errno
import fcntl
import os
import platform
import resource
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout, UnixFileLock

from sae_sweep.config import SaeSweepError
from sae_sweep.store.atomic import disk_error
from sae_sweep.store.partial import is_partial, remove_partial, remove_partials
from sae_sweep.store.paths import RunFolder, SweepFolder

HEARTBEAT_S = 5.0
"""Seconds between two touches of a marker."""
DEAD_AFTER_S = 60.0
"""Seconds without a touch after which an owner on another host is dead. filelock refuses to mix values."""

_LOCK = ".lock"
_TRY_S = 0.2
"""Long enough to outlast a process that only asks `is_held`, and to remove the marker of a dead owner."""
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
_OTHER_FILES = 96
"""Open files of a command beside a lock per run: about 50 were seen with text, model, W&B and figures."""


class Lease:
    """The right to write into a folder: a marker file beside it that names the owner.

    The owner is dead if its process is gone. Processes of another host cannot be seen: an owner there is dead
    if it did not touch the marker for `DEAD_AFTER_S`, by clocks that are taken to agree. A suspended process
    touches nothing, so it can lose its lease: `check` tells it.
    """

    def __init__(self, folder: Path) -> None:
        self.marker = folder.with_name(f".{folder.name}.lock.soft")
        self._folder = folder
        self._lease = SoftFileLease(
            self.marker, lease_duration=DEAD_AFTER_S, heartbeat_interval=HEARTBEAT_S, thread_local=False
        )

    @property
    def owner(self) -> str | None:
        """The process that has the lease, in words; None if there is none, or it is dead."""
        return _owner(self.marker)

    def acquire(self, timeout_s: float = _TRY_S) -> bool:
        """Take the lease, and make the folder if it is missing; False if another process keeps the lease.

        Args:
            timeout_s: how long to wait for it; negative: no limit.

        Raises:
            SaeSweepError: if the folder cannot be written.
        """
        free = not self.marker.exists()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lease.acquire(timeout_s, cancel_check=self._remove_dead)
        except Timeout:
            return False
        except OSError as error:
            if free:
                self._remove_unsigned()
            raise disk_error(self._folder, error) from error
        return True

    def release(self) -> None:
        """Remove the marker, unless it is another process's by now."""
        self._lease.release()

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Hold the lease unless another process does; yields whether it is held here."""
        held = self.acquire()
        try:
            yield held
        finally:
            if held:
                self.release()

    def check(self) -> None:
        """Raise SaeSweepError if another process has taken over because this one was suspended."""
        found = self._lease.owner
        if found is None or found.token != self._lease.token:
            raise SaeSweepError(
                f"{self._folder} is now written by {self.owner or 'nobody'}: this process did not run for "
                f"more than {DEAD_AFTER_S:g} s; launch the same command again"
            )

    def _remove_unsigned(self) -> None:
        """Remove the marker that a full disk kept this process from signing; filelock needs room for that."""
        with suppress(OSError):
            if self.marker.stat().st_size == 0:
                self.marker.unlink()

    def _remove_dead(self) -> bool:
        """Remove a dead owner's marker, which filelock cannot do on NFS; False, so that `acquire` goes on."""
        if self.owner is None:
            aside = self.marker.with_name(f"{self.marker.name}.{secrets.token_hex(4)}")
            with suppress(FileNotFoundError):  # the marker is gone already
                self.marker.rename(aside)
                if _owner(aside) is None:
                    aside.unlink()
                else:  # another process took over in between: this is its marker
                    aside.rename(self.marker)
        return False


def _owner(marker: Path) -> str | None:
    """The live owner that a marker names."""
    try:
        untouched_s = time.time() - marker.stat().st_mtime
    except OSError:
        return None
    owner = SoftFileLease(marker).owner
    if owner is not None and owner.hostname == _this_host():
        alive = _exists(owner.pid)
    else:
        alive = untouched_s <= DEAD_AFTER_S
    if not alive:
        return None
    return f"process {owner.pid} on {owner.hostname.split('?')[0]}" if owner else "an unknown process"


def _this_host() -> str:
    """This host as filelock names it in a marker: containers on one host number their processes apart."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        namespace = _INITIAL_PID_NAMESPACE
    return socket.gethostname() + ("" if namespace == _INITIAL_PID_NAMESPACE else f"?pidns-{namespace:x}")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's
    return True


@contextmanager
def lock_folder(folder: Path, timeout_s: float = -1) -> Iterator[None]:
    """Let one process at a time into a folder, which is made if it is missing.

    Args:
        folder: to lock.
        timeout_s: how long to wait for another process; negative: no limit.

    Raises:
        SaeSweepError: naming the process that holds the folder, or saying why it cannot be written.
    """
    lock = _acquire(folder, timeout_s)
    try:
        yield
    finally:
        lock.release()


def _acquire(folder: Path, timeout_s: float) -> UnixFileLock | Lease:
    path = folder / _LOCK
    flock = UnixFileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=_sign)
    try:
        flock.acquire(timeout_s)
        return flock
    except Timeout:
        owner = _signature(path)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise disk_error(folder, error) from error
        lease = Lease(folder)
        if lease.acquire(timeout_s):
            return lease
        owner = lease.owner or "another process"
    raise SaeSweepError(f"{folder} is held by {owner}: wait for it, or stop it")


def _sign(lock: int) -> None:
    with suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()} on {platform.node()}".encode())


def _signature(path: Path) -> str:
    """The process that signed a lock, in words."""
    with suppress(OSError):
        if signed := path.read_text(encoding="utf-8", errors="replace").strip():
            return f"process {signed}"
    return "another process"


@contextmanager
def hold(run: RunFolder) -> Iterator[None]:
    """Let one process at a time own a run folder; what a killed one left half-written there is removed.

    Raises:
        SaeSweepError: naming the process that holds it.
    """
    with lock_folder(run.root, _TRY_S):
        remove_partials(run.root)
        yield


def allow_holding(runs: int) -> None:
    """Raise this process's limit of open files, if need be, to hold so many runs at once.

    Raises:
        SaeSweepError: if the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = runs + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SaeSweepError(
            f"{runs} runs at once need {needed} open files, and the system allows {hard}: allow more "
            "(ulimit -n), or split the sweep"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def hold_sweep(sweep: SweepFolder) -> Iterator[None]:
    """Wait for, and have, the sole right to write what belongs to the sweep as a whole (plan, analysis)."""
    with lock_folder(sweep.root):
        for path in sweep.root.glob(".*"):
            if is_partial(path):
                remove_partial(path)
        remove_partials(sweep.jobs)
        remove_partials(sweep.root / "analysis")
        yield


def is_held(run: RunFolder) -> bool:
    """Whether a process holds the run folder; writes nothing, and keeps nobody from holding it."""
    try:
        with (run.root / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # nobody ever held it, or the file system has no flock
    return Lease(run.root).owner is not None
