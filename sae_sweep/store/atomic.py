"""Atomic writes: files and folders appear complete or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_sweep.config import SaeSweepError
from sae_sweep.store.partial import partial_path, remove_partial

_REMEDIES = {
    (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ): "make it writable, or set paths.output or paths.cache elsewhere",
    (
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ELOOP,
    ): "move away what is in its place",
    (errno.ENOENT,): "its folder was removed meanwhile",
    (errno.ENAMETOOLONG,): "choose shorter names (sweep, model.name, dataset.name) or paths.output elsewhere",
    (errno.EMFILE, errno.ENFILE): "allow more open files (ulimit -n)",
    (errno.EFBIG,): "allow larger files (ulimit -f)",
    (errno.EIO, errno.ESTALE): "the disk failed",
}


class DiskError(SaeSweepError):
    """A file or folder cannot be written."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` to make a temporary file beside `path`, flush it to disk, then rename it.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written; no partial file stays.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = partial_path(path)
        try:
            write(temporary)
            _flush(temporary)
            temporary.replace(path)
        finally:
            remove_partial(temporary)


def write_folder_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Write a flat folder like `write_atomic`.

    If the folder is there already, its files are replaced one by one: others in it are not ours, and stay.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = partial_path(path)
        try:
            temporary.mkdir()
            write(temporary)
            for file in temporary.iterdir():
                _flush(file)
            if path.is_dir():
                for file in sorted(temporary.iterdir()):
                    file.replace(path / file.name)
            else:
                temporary.rename(path)
        finally:
            remove_partial(temporary)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an OSError inside the block as the SaeSweepError of a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> DiskError:
    """Error for a file that cannot be written, as one line for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"no disk space left to write {path}: free some, or set paths.output or paths.cache to another "
            "disk; once there is room, the same command goes on"
        )
    remedy = next((text for codes, text in _REMEDIES.items() if error.errno in codes), "look at the disk")
    return DiskError(
        f"cannot write {path}: {error.strerror or error}; {remedy}, then the same command goes on"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file from memory. Libraries that write files themselves lose the reason why it failed."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def regular(path: Path) -> Path:
    """Return the path of a file to be opened.

    Raises:
        OSError: if a named pipe, a folder or a device is in its place; to open a pipe is to wait.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path
