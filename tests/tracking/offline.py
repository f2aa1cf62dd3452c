"""Read W&B's offline files back: a LevelDB log of protobuf records."""

import json
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

_BLOCK = 32768
_HEADER = 7
_ENDS_RECORD = (1, 4)  # full, last


def _records(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    if not data:
        return
    assert data[:4] == b":W&B"
    at, whole = _HEADER, b""
    while True:
        left = _BLOCK - at % _BLOCK
        at += left if left < _HEADER else 0
        if at + _HEADER > len(data):
            return
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        whole += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in _ENDS_RECORD:
            record = pb.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def _values(items: Sequence[Any]) -> dict[str, Any]:
    """`nested_key: a, b` -> "a.b"."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class OfflineRun:
    """What `wandb sync` would upload."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.step_metrics: dict[str, str] = {}
        self.exit_code: int | None = None
        for record in _records(path):
            self._take(record, record.WhichOneof("record_type"))

    def _take(self, record: Any, kind: str) -> None:
        if kind == "run":
            self.run = record.run
            self.config |= _values(record.run.config.update)
        elif kind == "history":
            self.history.append(_values(record.history.item))
        elif kind == "summary":
            self.summary |= _values(record.summary.update)
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "metric":
            self.step_metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    def points(self, metric: str) -> list[tuple[int, float]]:
        return [(row["tokens"], row[metric]) for row in self.history if metric in row]


def offline_runs(folder: Path, timeout_s: float = 30.0) -> list[OfflineRun]:
    """All finished runs below a folder that W&B was given; its own process may still be writing them."""
    deadline = time.monotonic() + timeout_s
    while True:
        runs = [OfflineRun(path) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.05)
