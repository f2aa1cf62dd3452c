"""JSON files: written with a checksum, and never believed if they are damaged."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_sweep.config import ConfigError, SaeSweepError, digest, escaped, first_line
from sae_sweep.store.atomic import regular, write_text

FORMAT, CHECKSUM = "format", "checksum"
"""First and last key of a record: whatever piece of the file is lost, one of them is left to say so."""
_FORMAT = 2
"""Version 0.1.0 wrote records without these keys."""
_MOST_PROBLEMS = 3
_MOST_BYTES = 2**26
"""Size above which a file is no record of ours: the plan of 30,000 runs is smaller."""


_MAY_BE_WHOLE = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
}
"""Errors that say nothing about a file's content; no remedy may remove such a file."""


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, with a checksum of its content as its last key."""
    content = json.loads(json.dumps({FORMAT: _FORMAT, **record}, allow_nan=False))  # as it will be read
    write_json(path, {**content, CHECKSUM: digest(content)})


def read_record(path: Path, remedy: str, *, old: bool = True) -> dict[str, Any]:
    """Read a mapping that `write_record` wrote.

    Args:
        path: of the file.
        remedy: what to do if it is damaged.
        old: whether an earlier version wrote such files, without a checksum.

    Raises:
        SaeSweepError: one line with the file, its damage and the `remedy`.
    """
    record = read_json(path, remedy)
    if not isinstance(record, dict):
        raise unreadable(path, "it holds no mapping", remedy)
    if not old or FORMAT in record or CHECKSUM in record:
        if record.pop(CHECKSUM, None) != digest(record):
            raise unreadable(path, "its content does not fit its checksum", remedy)
        if record.pop(FORMAT, None) != _FORMAT:
            raise unreadable(path, "it was written by another version of sae_sweep", remedy)
    return record


def read_json(path: Path, remedy: str = "") -> Any:
    """Read a JSON file. Raises SaeSweepError, one line with the file, its damage and the `remedy`."""
    text = read_text(path, remedy)
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_not_finite, parse_float=_finite_float
        )
        json.dumps(value)  # as deep as everything that walks it later
    except RecursionError:
        raise unreadable(path, "it is nested too deeply", remedy) from None
    except ValueError as error:
        raise unreadable(path, str(error), remedy) from error
    return value


def read_text(path: Path, remedy: str, most_bytes: int = _MOST_BYTES) -> str:
    """Read a text file of limited size. Raises SaeSweepError like `read_json`."""
    try:
        with regular(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise unreadable(path, f"it has {size:,} bytes, too many for such a file", remedy)
            return file.read(most_bytes).decode("utf-8")
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) and path.is_symlink()
        raise unreadable(path, "it is a link to nothing" if gone else error, remedy) from error
    except ValueError as error:
        raise unreadable(path, str(error), remedy) from error


def is_present(path: Path) -> bool:
    """Whether anything is in the file's place, also what cannot be read: reading it says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def unreadable(path: Path, why: str | ConfigError | OSError, remedy: str = "") -> SaeSweepError:
    """Error for a damaged file, as one line for the user; of many problems the first ones are named.

    A file that may be whole gets another remedy.
    """
    if isinstance(why, OSError):
        if why.errno in _MAY_BE_WHOLE:
            remedy = "make it readable, then the same command goes on"
        why = why.strerror or first_line(why)
    elif isinstance(why, ConfigError):
        more = len(why.problems) - _MOST_PROBLEMS
        why = "; ".join(why.problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    return SaeSweepError("; ".join(part for part in (f"cannot read {path}: {escaped(why)}", remedy) if part))


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def _not_finite(word: str) -> float:
    raise ValueError(f"it holds {word}")


def _finite_float(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError("it holds a number that is too large")
    return float(digits)
