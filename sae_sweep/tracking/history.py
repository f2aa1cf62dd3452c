"""`history.jsonl`: everything that was logged of a run, one JSON a line; what W&B is replayed from.

Every line has `tokens` and `time` (seconds since 1970). Beside these it holds either numbers, or
`histogram` (a name) with `counts` and `edges`; `summary`; `image` or `artifact` (a name) with `path`.
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

Record = Mapping[str, Any]

_TAIL_BYTES = 2**16


class History:
    """Append-only, each line on its way to the disk as soon as it is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drop_torn_line()
        self.lines = sum(1 for _ in self._raw())
        """Complete lines in the file."""
        self.tokens = max((int(record.get("tokens", 0)) for record in self.read()), default=0)
        """SAE inputs at the last point."""

    def append(self, tokens: int, values: Record) -> dict[str, Any]:
        """Write one line; returns what it holds.

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
        """Have all lines on the disk: a checkpoint that counts them must not outlive them."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, lines: int) -> None:
        """Keep the first `lines` lines."""
        kept = list(self._raw())[:lines]
        if len(kept) < self.lines:
            os.truncate(self._path, sum(map(len, kept)))
        self.lines = len(kept)
        self.tokens = max((int(record.get("tokens", 0)) for record in self.read()), default=0)

    def read(self) -> Iterator[dict[str, Any]]:
        """All lines, in order."""
        return (json.loads(line) for line in self._raw())

    def _raw(self) -> Iterator[bytes]:
        if self._path.exists():
            with self._path.open("rb") as file:
                yield from file

    def _drop_torn_line(self) -> None:
        """A machine that went down may leave the beginning of a line."""
        lines = list(self._raw())
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self._path, sum(map(len, lines[:-1])))


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value


def latest_points(path: Path) -> list[dict[str, Any]]:
    """The last lines of a history, the first at each token count; the file is only read.

    Not more than its last 64 kB, so that the length of a run does not matter.
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
