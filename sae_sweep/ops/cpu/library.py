"""Finds the compiled kernels, or compiles them.

A library's name holds the hash of its content, so that no file stands for another: one that was cut off or
changed is compiled again. It is kept in a folder only if nobody but us and root can write there.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.cpu.binding import load_library
from sae_sweep.ops.cpu.compiler import Compiler, find_compiler
from sae_sweep.ops.cpu.ownership import NotOursError, check_folder, read_file
from sae_sweep.store import cache_folder

logger = logging.getLogger(__name__)

_START, _BUILD = ".sae_sweep-start-", ".sae_sweep-build-"
"""Folders in which a compiler works, each with a lock that is held as long as it does."""


def compiled_kernels(cache: Path) -> ctypes.CDLL:
    """The kernels compiled for this machine, kept in `cache`, else in the user's cache folder, else nowhere.

    A library that either folder holds is not compiled again for the other. Processes that compile at the same
    time each write the whole file.

    Raises:
        SaeSweepError: if there is no compiler, it fails, or what it wrote cannot be loaded.
    """
    compiler = find_compiler()
    key = compiler.key()
    for place in _places(cache):
        with suppress(NotOursError, OSError):
            if library := _kept(check_folder(place / "kernels"), key):
                return library
    reasons = []
    for place in _places(cache):
        try:
            return _compile_into(_folder_of_ours(place), compiler, key)
        except (NotOursError, OSError) as error:
            reasons.append(_in_words(error))
    try:
        with _building(Path(tempfile.gettempdir())) as (build, lock):
            loaded = load_library(compiler.compile(build, lock).read_bytes())
    except (NotOursError, OSError) as error:
        reasons.append(_in_words(error))
        raise SaeSweepError(f"no folder is safe to compile the kernels in: {'; '.join(reasons)}") from error
    _warn_not_kept(reasons[0])
    return loaded


def _places(cache: Path) -> Iterator[Path]:
    yield cache
    if cache_folder(None) != cache:
        yield cache_folder(None)


def _warn_not_kept(reason: str) -> None:
    logger.warning("the compiled kernels cannot be kept, so every start compiles them: %s", reason)


def _in_words(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _folder_of_ours(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "kernels"
    folder.mkdir(mode=0o755, exist_ok=True)
    return check_folder(folder)


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    """A library that is whole and ours and can be loaded; several have a key if nodes differ otherwise."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with suppress(SaeSweepError, OSError):
            content = read_file(path)
            if path.name == _name(key, content):
                return load_library(content)
    return None


def _compile_into(folder: Path, compiler: Compiler, key: str) -> ctypes.CDLL:
    with _building(folder) as (build, lock):
        file = compiler.compile(build, lock)
        content = file.read_bytes()
        library = load_library(content)
        file.chmod(file.stat().st_mode & 0o755)
        name = _name(key, content)
        try:
            file.replace(folder / name)
        except OSError as error:  # such as a folder in its place
            _warn_not_kept(f"{folder / name}: {error.strerror}")
        return library


def _name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()}.so"


@contextmanager
def _building(parent: Path) -> Iterator[tuple[Path, int]]:
    """A new folder in which to compile, and its lock, an open file; both are gone afterwards."""
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_START, dir=parent))
    try:
        check_folder(folder)
        with (folder / "lock").open("w") as lock:
            with suppress(OSError):  # without locks, nobody removes leftovers
                fcntl.flock(lock, fcntl.LOCK_SH)
            # only now is it known as a build, so that nobody takes its lock first
            folder = folder.rename(parent / folder.name.replace(_START, _BUILD))
            yield folder, lock.fileno()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of compilations that were killed: ours, with a lock that nobody holds."""
    for folder in parent.glob(f"{_BUILD}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
