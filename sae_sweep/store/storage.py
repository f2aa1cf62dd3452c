"""Every output path, and how files get there: complete or not at all."""

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sae_sweep.config import SaeSweepError

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")
"""A file's name between a dot and what `tempfile` adds."""
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps its files."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def history(self) -> Path:
        return self.root / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def sae(self) -> Path:
        return self.root / "sae"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def features(self) -> Path:
        return self.root / "features"


@dataclass(frozen=True)
class SweepFolder:
    """Where one sweep keeps its runs and what is computed over all of them."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def matching(self) -> Path:
        return self.root / "analysis" / "matching"

    @property
    def tables(self) -> Path:
        return self.root / "analysis" / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "analysis" / "figures"

    @property
    def wandb(self) -> Path:
        return self.root

    @property
    def jobs(self) -> Path:
        """What jobs outside the launching process read and leave: frozen groups, tickets and logs."""
        return self.root / "jobs"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.root / name)


def find_sweep(output: str, name: str | None, task: str) -> SweepFolder:
    """The folder of a sweep that is on disk.

    Args:
        output: `paths.output`.
        name: of the sweep; None: the command names none.
        task: for the message.

    Raises:
        SaeSweepError: naming the sweeps that there are.
    """
    root = Path(output).expanduser().resolve()
    there = ", ".join(sorted(plan.parent.name for plan in root.glob("*/plan.json"))) or "none"
    if name is None:
        raise SaeSweepError(f"task={task} needs sweep=NAME, a folder below {root}; there is {there}")
    folder = SweepFolder(root / name)
    if not folder.plan.exists():
        raise SaeSweepError(
            f"{folder.root}: no sweep there (no plan.json); below paths.output there is {there}"
        )
    return folder


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary name beside `path`, flush it to disk, then rename it into place.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written; nothing half-written stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            _flush(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def write_folder_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Like `write_atomic`, for a folder that appears whole and replaces an earlier one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            write(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            temporary.chmod(0o755)
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise disk_error(path, error) from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def disk_error(path: Path, error: OSError) -> SaeSweepError:
    """The one line a user sees when a file cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SaeSweepError(
            f"no disk space left to write {path}: free some, "
            "or set paths.output or paths.cache to another disk"
        )
    return SaeSweepError(f"cannot write {path}: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: _write_utf8(temporary, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Raises SaeSweepError, naming the file, if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaeSweepError(f"cannot read {path}: {error}") from error


def read_status(run: RunFolder) -> Mapping[str, Any]:
    """The run's status, or an empty mapping where it never started. Raises SaeSweepError if it is damaged."""
    if not run.status.exists():
        return {}
    status = read_json(run.status)
    if not isinstance(status, Mapping):
        raise SaeSweepError(f"cannot read {run.status}: not the status of a run; remove it to start over")
    return status


def read_plan(folder: SweepFolder) -> dict[str, Any]:
    """The plan of a sweep that is on disk.

    Raises:
        SaeSweepError: naming the file, if it is missing or damaged.
    """
    plan = read_json(folder.plan)
    try:
        if all(run["id"] and run["name"] and isinstance(run["config"], Mapping) for run in plan["runs"]):
            return dict(plan)
    except (KeyError, TypeError):
        pass
    raise SaeSweepError(
        f"cannot read {folder.plan}: not a plan of this program; move it away, or choose sweep=NAME"
    )


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


def cache_folder(configured: str | None) -> Path:
    """`paths.cache`, or the user's cache folder."""
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_sweep"
