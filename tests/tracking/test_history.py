"""history.jsonl is complete on its own, and can be wound back."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_sweep.config import SaeSweepError
from sae_sweep.tracking.history import History, HistoryMark, latest_points
from tests.tracking.conftest import OpenSink


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kind_of_record_is_a_line(tmp_path: Path, open_one: OpenSink) -> None:
    sink = open_one(backend="none")
    sink.rewind(None)
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
    keep=st.integers(min_value=0, max_value=8),
    torn=st.binary(max_size=5).filter(lambda b: b"\n" not in b),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rewinding_keeps_what_was_marked_and_resuming_drops_a_torn_line(
    tmp_path: Path, values: list[float], keep: int, torn: bytes
) -> None:
    path = tmp_path / "history.jsonl"
    path.unlink(missing_ok=True)
    history = History(path)
    marks = [history.mark()]
    for step, value in enumerate(values):
        history.append(step, {"x": value})
        marks.append(json.loads(json.dumps(history.mark())))
    with path.open("ab") as file:
        file.write(torn)
    whole = History(path)
    whole.resume()
    assert whole.mark() == marks[-1]
    kept = values[:keep]
    again = History(path)
    again.rewind(marks[len(kept)])
    assert [r["x"] for r in again.read()] == [v if math.isfinite(v) else None for v in kept]
    again.append(99, {"x": 1.0})
    assert [r["tokens"] for r in lines(path)] == [*range(len(kept)), 99]


def logged(path: Path, points: int = 3) -> HistoryMark:
    history = History(path)
    for step in range(points):
        history.append(step, {"loss": step / 7})
    return history.mark()


def damages(whole: bytes) -> Iterator[bytes]:
    """Every byte changed in one bit, cuts, nothing, and bytes that are no text."""
    for place in range(len(whole)):
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        yield whole[:place]
    yield bytes(range(256)) * 3
    yield b"x" + whole
    yield whole.replace(b"\n", b"\r\n")


def test_damage_before_a_mark_is_never_replayed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    mark = logged(path)
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(SaeSweepError, match=r"history\.jsonl is damaged .*delete the run's folder"):
            History(path).rewind(mark)
        assert path.read_bytes() == damaged


def test_damage_after_a_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    mark = logged(path)
    with path.open("ab") as file:
        file.write(b"\x00\xff no record\n" * 3)
    history = History(path)
    history.rewind(mark)
    assert history.mark() == mark


def test_a_missing_history_is_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    mark = logged(path)
    path.unlink()
    with pytest.raises(
        SaeSweepError, match=rf"history\.jsonl is damaged \(it has 0 bytes, and {mark['bytes']} were"
    ):
        History(path).rewind(mark)
    History(path).rewind(None)


@pytest.mark.parametrize(
    "mark",
    [7, "x", {"bytes": -1}, {"bytes": 1e9, "tokens": 0}, {"bytes": 2**62, "tokens": 0, "checksum": "0"}],
)
def test_a_mark_of_something_else_is_refused(tmp_path: Path, mark: Any) -> None:
    path = tmp_path / "history.jsonl"
    logged(path)
    with pytest.raises(SaeSweepError, match=r"history\.jsonl is damaged"):
        History(path).rewind(mark)


NO_RECORDS = [
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"time": 1.0}',
    b'{"tokens": 1}',
    b'{"tokens": "1", "time": 1.0}',
    b'{"tokens": true, "time": 1.0}',
    b'{"tokens": -1, "time": 1.0}',
    b'{"tokens": 1e400, "time": 1.0}',
    b'{"tokens": NaN, "time": 1.0}',
    b'{"tokens": 1' + b"0" * 5000 + b', "time": 1.0}',
    b'{"tokens": 1, "time": NaN}',
    b'{"tokens": 1, "time": "yesterday"}',
    b'{"tokens": 1, "time": 1' + b"0" * 400 + b"}",
    b'{"tokens": 1, "time": 1.0, "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
]


@pytest.mark.parametrize("line", NO_RECORDS, ids=range(len(NO_RECORDS)))
def test_a_line_that_is_no_record_is_not_resumed_and_not_shown(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    logged(path)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(SaeSweepError, match=r"history\.jsonl is damaged \(line 4 is no record\)"):
        History(path).resume()
    assert [point["tokens"] for point in latest_points(path)] == [0, 1, 2]


def test_a_look_at_a_damaged_history_shows_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    logged(path)
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        assert len(latest_points(path)) <= 3
    path.unlink()
    path.mkdir()
    assert latest_points(path) == []


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_sweep.tracking.history._LONGEST_LINE", 100)
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"tokens": 1, "time": 1.0, "x": "' + b"x" * 1000)
    with pytest.raises(SaeSweepError, match="line 1 is no record"):
        History(path).resume()


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_history_that_another_program_changed_is_not_continued(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(1, {"x": 1.0})
    change(path)
    with pytest.raises(SaeSweepError, match=r"history\.jsonl is damaged"):
        history.append(2, {"x": 1.0})


def test_a_history_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    path.mkdir()
    with pytest.raises(SaeSweepError, match=r"cannot write .*history.jsonl"):
        history.append(1, {"x": 1.0})
    with pytest.raises(SaeSweepError, match=r"cannot write .*history.jsonl"):
        history.rewind(None)


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

        def tell(self) -> int:
            return self._file.tell()

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
