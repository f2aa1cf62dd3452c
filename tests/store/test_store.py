"""Storage: files appear complete or not at all, and one process holds a run."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.store import (
    RunFolder,
    SweepFolder,
    hold,
    hold_sweep,
    is_held,
    locks,
    paths,
    read_json,
    write_atomic,
    write_folder_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1, 2]})
    assert read_json(tmp_path / "a" / "b.json") == {"x": [1, 2]}
    assert names(tmp_path / "a") == ["b.json"]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, 1)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        SaeSweepError, match=r"no disk space left to write .*x\.json: free some, or set paths\.output"
    ):
        write_atomic(file, fail)
    assert read_json(file) == 1
    assert names(tmp_path) == ["x.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    write_folder_atomic(folder, lambda path: (path / "one").write_text("1") and None)

    def fail(path: Path) -> None:
        (path / "two").write_text("2")
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(SaeSweepError, match=r"cannot write .*sae: Permission denied"):
        write_folder_atomic(folder, fail)
    assert names(folder) == ["one"]
    assert names(tmp_path) == ["sae"]
    write_folder_atomic(folder, lambda path: (path / "two").write_text("2") and None)
    assert names(folder) == ["two"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SaeSweepError, match=r"cannot read .*bad\.json"):
        read_json(tmp_path / "bad.json")


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with hold(run), pytest.raises(SaeSweepError, match=f"held by process {os.getpid()}"), hold(run):
        pass
    with hold(run):
        pass


def test_cache_folder_follows_the_config_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert paths.cache_folder(None) == Path("/somewhere/sae_sweep")
    assert paths.cache_folder("/mine") == Path("/mine")


def test_what_a_killed_process_left_goes_when_the_folder_is_held_again(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    run = sweep.run("run")
    half = [
        run.root / ".status.json.a1b2c3d_.json",
        run.root / "checkpoint" / ".state.safetensors.a1b2c3d_.safetensors",
        sweep.root / ".plan.json.a1b2c3d_.json",
        sweep.matching / ".matrix.png.a1b2c3d_.png",
    ]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (run.root / ".sae.a1b2c3d_").mkdir()
    (run.root / ".sae.a1b2c3d_" / "cfg.json").write_text("{}")
    with hold(run):
        assert [path.exists() for path in half] == [False, False, True, True]
        assert not (run.root / ".sae.a1b2c3d_").exists()
    with hold_sweep(sweep):
        assert not any(path.exists() for path in half)


def test_whether_a_run_is_held_can_be_asked_without_holding_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not is_held(run)
    assert not run.root.exists()
    with hold(run):
        assert is_held(run)
    assert not is_held(run)


def test_somebody_who_only_asks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    with hold(run):
        pass
    asking = (run.root / ".lock").open("r")
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: asking.close())
    with hold(run):
        assert is_held(run)
