"""history.jsonl is complete on its own, and can be wound back."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_sweep.config import SaeSweepError
from sae_sweep.tracking.history import History
from tests.tracking.conftest import OpenSink


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kind_of_record_is_a_line(tmp_path: Path, open_one: OpenSink) -> None:
    sink = open_one(backend="none")
    sink.rewind(0)
    sink.scalars(10, {"loss": 0.5, "odd": math.nan})
    sink.histogram("density", [1, 2], [0.0, 0.5, 1.0])
    sink.summary({"ev": 0.9})
    sink.image("figure", tmp_path / "run" / "features" / "figure.png")
    sink.artifact("sae", tmp_path / "run" / "sae")
    sink.finish(failed=False)
    found = lines(tmp_path / "run" / "history.jsonl")
    assert all(line.pop("time") > 1e9 for line in found)
    assert found == [
        {"tokens": 10, "loss": 0.5, "odd": None},
        {"tokens": 10, "histogram": "density", "counts": [1.0, 2.0], "edges": [0.0, 0.5, 1.0]},
        {"tokens": 10, "summary": {"ev": 0.9}},
        {"tokens": 10, "image": "figure", "path": "features/figure.png"},
        {"tokens": 10, "artifact": "sae", "path": "sae"},
    ]


@given(
    values=st.lists(st.floats(), max_size=8),
    keep=st.integers(min_value=0, max_value=10),
    torn=st.binary(max_size=5).filter(lambda b: b"\n" not in b),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rewinding_keeps_the_first_lines_and_no_torn_one(
    tmp_path: Path, values: list[float], keep: int, torn: bytes
) -> None:
    path = tmp_path / "history.jsonl"
    path.unlink(missing_ok=True)
    history = History(path)
    for step, value in enumerate(values):
        history.append(step, {"x": value})
    assert history.lines == len(values)
    with path.open("ab") as file:
        file.write(torn)
    again = History(path)
    assert again.lines == len(values)
    again.rewind(keep)
    kept = values[:keep]
    assert [r["x"] for r in again.read()] == [v if math.isfinite(v) else None for v in kept]
    assert again.lines == len(kept)
    again.append(99, {"x": 1.0})
    assert [r["tokens"] for r in lines(path)] == [*range(len(kept)), 99]


def test_a_history_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    path.mkdir()
    with pytest.raises(SaeSweepError, match=r"cannot write .*history.jsonl"):
        history.append(1, {"x": 1.0})
    assert history.lines == 0


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(1, {"x": 1.0})
    before = path.read_bytes()
    real_open = Path.open

    class Full:
        def __init__(self, file) -> None:
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> None:
            self._file.write(data[:5])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(real_open(self, mode)))
    with pytest.raises(SaeSweepError, match="no disk space left"):
        history.append(2, {"x": 2.0})
    monkeypatch.undo()
    assert path.read_bytes() == before
    history.append(2, {"x": 2.0})
    assert [line["tokens"] for line in lines(path)] == [1, 2]
