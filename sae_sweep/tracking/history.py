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

from sae_sweep.store import disk_error

HistoryRecord = Mapping[str, Any]
"""One line of the history."""

_TAIL_BYTES = 2**16


class History:
    """An append-only log file; each record is written as soon as it is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drop_torn_line()
        self.lines = sum(1 for _ in self._raw())
        """Complete lines in the file."""
        self.tokens = max((int(record.get("tokens", 0)) for record in self.read()), default=0)
        """SAE inputs at the last record."""

    def append(self, tokens: int, values: HistoryRecord) -> dict[str, Any]:
        """Write one line; returns its record.

        Raises:
            SaeSweepError: if the disk is full or the file cannot be written.
        """
        record = {"tokens": tokens, "time": round(time.time(), 3), **values}
        line = json.dumps(_without_nan(record)) + "\n"
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, size)
            raise disk_error(self._path, error) from error
        self.lines += 1
        self.tokens = tokens
        return record

    def flush(self) -> None:
        """Flush all lines to disk: a checkpoint counts them, and must not outlive them."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, lines: int) -> None:
        """Drop everything after the first `lines` lines."""
        kept = list(self._raw())[:lines]
        if len(kept) < self.lines:
            os.truncate(self._path, sum(map(len, kept)))
        self.lines = len(kept)
        self.tokens = max((int(record.get("tokens", 0)) for record in self.read()), default=0)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all records in order."""
        return (json.loads(line) for line in self._raw())

    def _raw(self) -> Iterator[bytes]:
        if self._path.exists():
            with self._path.open("rb") as file:
                yield from file

    def _drop_torn_line(self) -> None:
        """Remove the beginning of a line, which a machine that crashed may have left."""
        lines = list(self._raw())
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self._path, sum(map(len, lines[:-1])))


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by null: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value


def latest_points(path: Path) -> list[dict[str, Any]]:
    """The last records of a history, the first one at each token count; does not write to the file.

    Reads at most the last 64 kB, so that the time does not grow with the run.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    whole = [line for line in lines[start > 0 :] if line.endswith(b"\n")]
    points: dict[int, dict[str, Any]] = {}
    for record in map(json.loads, whole):
        points.setdefault(int(record["tokens"]), record)
    return list(points.values())
