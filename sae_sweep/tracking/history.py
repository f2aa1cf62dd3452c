"""`history.jsonl`: everything that was logged for a run, one JSON object per line; W&B is replayed from it.

Every line has `tokens` and `time` (seconds since 1970). It also has either numbers, or `histogram` (a name)
with `counts` and `edges`; `summary`; `image` or `artifact` (a name) with `path`.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from sae_sweep.config import SaeSweepError, first_line, is_count
from sae_sweep.store import disk_error, disk_errors, regular, unreadable

HistoryRecord = Mapping[str, Any]
"""One line of the history."""
HistoryMark = Mapping[str, Any]
"""JSON values that name a beginning of the history: its `bytes`, their `checksum`, and its last `tokens`."""

_REMEDY = "put it back as it was, or delete the run's folder to train it again"
HISTORY_REMEDY = "the SAE and its metrics are whole without it"
"""What to know of a damaged history whose run is done."""
_NO_POINTS = {"histogram", "summary", "image", "artifact", "table"}
"""Keys of records that are no points of curves."""
_TAIL_BYTES = 2**16
_LONGEST_LINE = 2**24
"""Bytes; the longest record is a histogram, of some kB."""


class History:
    """An append-only log file; each record is written as soon as it is logged.

    `rewind` or `resume` opens an existing file. A mark has a checksum, so that damage is not taken for what
    was logged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start_at(b"", 0)

    def _start_at(self, content: bytes, tokens: int) -> None:
        self._bytes, self._checksum = len(content), xxh3_128(content)
        self.tokens = tokens
        """SAE inputs at the last record."""

    def append(self, tokens: int, values: HistoryRecord) -> dict[str, Any]:
        """Write one line; returns its record.

        Raises:
            SaeSweepError: if the disk is full, or the file cannot be written or was changed meanwhile.
        """
        record = {"tokens": tokens, "time": round(time.time(), 3), **values}
        line = (json.dumps(_without_nan(record)) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with regular(self._path).open("ab") as file:
                if file.tell() != self._bytes:
                    raise self._damaged(f"it has {file.tell():,} bytes, and {self._bytes:,} were logged")
                file.write(line)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, self._bytes)
            raise disk_error(self._path, error) from error
        self._bytes += len(line)
        self._checksum.update(line)
        self.tokens = tokens
        return record

    def mark(self) -> dict[str, Any]:
        """Flush everything to disk, and return the mark of its end: a checkpoint must not outlive it.

        Raises:
            SaeSweepError: if the file cannot be flushed, or was changed or removed meanwhile.
        """
        size = 0
        # without a file, nothing was logged, or it is gone
        with disk_errors(self._path), suppress(FileNotFoundError), regular(self._path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        if size != self._bytes:
            raise self._damaged(f"it has {size:,} bytes, and {self._bytes:,} were logged")
        return {"bytes": self._bytes, "checksum": self._checksum.hexdigest(), "tokens": self.tokens}

    def rewind(self, mark: HistoryMark | None) -> None:
        """Drop everything after a mark; without one, everything.

        Raises:
            SaeSweepError: if what is before the mark is not what was logged, or the file cannot be written.
        """
        content, tokens = self._up_to(mark) if mark else (b"", 0)
        with disk_errors(self._path):
            if self._path.exists():
                os.truncate(self._path, len(content))
        self._start_at(content, tokens)

    def _up_to(self, mark: HistoryMark) -> tuple[bytes, int]:
        """The bytes before a mark, and the tokens at it."""
        if not isinstance(mark, Mapping) or not all(is_count(mark.get(key)) for key in ("bytes", "tokens")):
            raise self._damaged(f"{mark} is no mark in it")
        size, tokens = int(mark["bytes"]), int(mark["tokens"])
        try:
            with regular(self._path).open("rb") as file:
                there = os.fstat(file.fileno()).st_size
                content = file.read(size) if there >= size else b""
        except FileNotFoundError:
            there, content = 0, b""
        except OSError as error:
            raise unreadable(self._path, error, _REMEDY) from error
        if there < size:
            raise self._damaged(f"it has {there:,} bytes, and {size:,} were logged")
        if xxh3_128(content).hexdigest() != mark.get("checksum"):
            raise self._damaged("its checksum differs")
        return content, tokens

    def resume(self) -> None:
        """Go on after the last line; a torn one, which a machine that crashed may have left, is dropped.

        Raises:
            SaeSweepError: if a line is no record, or the file cannot be read.
        """
        content, tokens = bytearray(), 0
        try:
            for number, line in enumerate(_lines(self._path), 1):
                record = _record(line)
                if record is None:
                    raise self._damaged(f"line {number} is no record")
                content += line
                tokens = max(tokens, record["tokens"])
            if content or self._path.exists():
                os.truncate(self._path, len(content))
        except OSError as error:
            raise unreadable(self._path, error, _REMEDY) from error
        self._start_at(bytes(content), tokens)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all records in order."""
        return (json.loads(line) for line in _lines(self._path))

    def _damaged(self, what: str) -> SaeSweepError:
        return SaeSweepError(f"{self._path} is damaged ({what}): {_REMEDY}")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file, and what exceeds the longest possible line as one."""
    if path.exists():
        with regular(path).open("rb") as file:
            while (line := file.readline(_LONGEST_LINE)).endswith(b"\n") or len(line) == _LONGEST_LINE:
                yield line


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not is_count(record.get("tokens")):
        return None
    at = record.get("time")
    return record if isinstance(at, int | float) and 0 <= at < 2**53 else None


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by null: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value


def curve_points(path: Path) -> list[dict[str, Any]]:
    """The numbers of a whole history: one record per number of tokens.

    Raises:
        SaeSweepError: if it cannot be read, or a line is no record.
    """
    points: dict[int, dict[str, Any]] = {}
    try:
        for record in History(path).read():
            if not _NO_POINTS & record.keys():
                points.setdefault(record["tokens"], {}).update(record)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"a line is no record ({first_line(error)})"
        raise unreadable(path, why, HISTORY_REMEDY) from error
    return list(points.values())


def latest_points(path: Path) -> list[dict[str, Any]]:
    """The last records of a history, the first one at each token count; does not write to the file.

    Reads at most the last 64 kB, so that the time does not grow with the run. Damaged lines are left out.
    """
    try:
        with regular(path).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return []
    points: dict[int, dict[str, Any]] = {}
    for record in map(_record, lines[start > 0 : -1]):  # the last one is torn, or empty
        if record is not None:
            points.setdefault(record["tokens"], record)
    return list(points.values())
