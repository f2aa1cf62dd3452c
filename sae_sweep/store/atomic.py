"""Atomic writes: files and folders appear complete or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_sweep.config import SaeSweepError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, then rename it.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written; no partial file stays.
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
    """Write a folder like `write_atomic`; it replaces an earlier folder."""
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
    """Error for a file that cannot be written, as one line for the user."""
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
    """Read a JSON file. Raises SaeSweepError, naming the file, if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SaeSweepError(f"cannot read {path}: {error}") from error
