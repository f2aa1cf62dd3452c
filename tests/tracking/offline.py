"""Read W&B's offline files back: a LevelDB log of protobuf records.

`python -m tests.tracking.offline FOLDER` lists what the runs in a sweep's folder contain.
"""

import json
import struct
import sys
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
        self.system: list[str] = []
        """Names of the system metrics."""
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
        elif kind == "stats":
            self.system += [item.key for item in record.stats.item]
        elif kind == "metric":
            self.step_metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    @property
    def name(self) -> str:
        return str(self.run.display_name)

    def keys(self) -> dict[str, dict[str, list[int]]]:
        """The token counts at which each key of the history was logged, by key and type of value."""
        found: dict[str, dict[str, list[int]]] = {}
        for row in self.history:
            for key, kind in _typed(row):
                found.setdefault(key, {}).setdefault(kind, []).append(row.get("tokens", -1))
        return found

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


def _typed(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of a point of the history with their types; W&B splits what is no number into several."""
    media = {key.removesuffix("._type"): str(kind) for key, kind in row.items() if key.endswith("._type")}
    yield from media.items()
    for key, value in row.items():
        if not key.startswith("_") and not any(key.startswith(f"{name}.") for name in media):
            yield key, "number" if isinstance(value, int | float) else type(value).__name__


def listing(run: OfflineRun) -> str:
    """Name, tags, keys with type and token counts, and config of a run, one a line."""
    about = run.run
    lines = [
        f"{run.name} | {about.job_type} | id {about.run_id}",
        f"  project {about.project}, group {about.run_group}",
        f"  tags: {', '.join(about.tags)}",
    ]
    for key, kinds in sorted(run.keys().items()):
        steps = {
            kind: f"{at[0]}" if len(at) == 1 else f"{at[0]}..{at[-1]} x{len(at)}"
            for kind, at in kinds.items()
        }
        lines.append(f"  {key}: {', '.join(f'{kind} at {at}' for kind, at in steps.items())}")
    if run.system:
        lines.append(f"  system metrics: {len(set(run.system))}, such as {sorted(set(run.system))[0]}")
    lines += [f"  artifact {one.name} ({one.type})" for one in run.artifacts]
    flat = {
        key: value
        for key, value in run.config.items()
        if key not in ("_wandb", "run", "provenance", "command")
    }
    return "\n".join([*lines, f"  config: {json.dumps(flat)}"]) + "\n"


if __name__ == "__main__":
    for found in offline_runs(Path(sys.argv[1])):
        sys.stdout.write(listing(found))
