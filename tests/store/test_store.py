"""Storage: files appear complete or not at all."""

import errno
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.store import paths, read_json, write_atomic, write_folder_atomic, write_json


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


def test_cache_folder_follows_the_config_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert paths.cache_folder(None) == Path("/somewhere/sae_sweep")
    assert paths.cache_folder("/mine") == Path("/mine")
