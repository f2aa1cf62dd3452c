"""Storage: files appear complete or not at all."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.store import (
    Lease,
    RunFolder,
    hold,
    is_held,
    paths,
    read_json,
    regular,
    write_atomic,
    write_bytes,
    write_folder_atomic,
    write_json,
)
from tests.disks import fill_up


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


def test_a_folder_that_is_replaced_keeps_what_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    write_folder_atomic(folder, lambda path: (path / "cfg.json").write_text("1") and None)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    write_folder_atomic(folder, lambda path: (path / "cfg.json").write_text("2") and None)
    assert names(folder) == ["cfg.json", "notes.txt", "plots"]
    assert (folder / "cfg.json").read_text() == "2"
    assert names(tmp_path) == ["sae"]


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o022])
def test_files_and_folders_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "run" / "status.json", 1)
        write_folder_atomic(tmp_path / "run" / "sae", lambda path: (path / "x").write_text("1") and None)
        with hold(RunFolder(tmp_path / "run")):
            made = list(tmp_path.rglob("*"))
            modes = {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()}
            folders = {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()}
    finally:
        os.umask(before)
    assert len(made) == 5
    assert modes == {0o666 & ~mask}
    assert folders == {0o777 & ~mask}


def test_a_full_disk_leaves_the_old_file_and_no_debris(small_disk: Path) -> None:
    file, folder = small_disk / "a" / "x.bin", small_disk / "a" / "sae"
    write_bytes(file, b"old")
    write_folder_atomic(folder, lambda path: (path / "x").write_text("old") and None)
    line = r"no disk space left to write .*: free some, .*; once there is room, the same command goes on$"
    with pytest.raises(SaeSweepError, match=line):
        write_bytes(file, bytes(2**20))
    with pytest.raises(SaeSweepError, match=line):
        write_folder_atomic(folder, lambda path: (path / "x").write_bytes(bytes(2**20)) and None)
    assert (file.read_bytes(), (folder / "x").read_text()) == (b"old", "old")
    assert names(small_disk / "a") == ["sae", "x.bin"]


def test_locks_and_leases_on_a_full_disk(small_disk: Path) -> None:
    """What can be locked is locked, what cannot be is one line, and nothing is left."""
    run, stream = RunFolder(small_disk / "run"), Lease(small_disk / "stream")
    for folder in (run.root, small_disk / "stream"):
        folder.mkdir()
    fill_up(small_disk)
    with suppress(SaeSweepError), hold(run):
        assert is_held(run)
    try:
        assert stream.acquire()
    except SaeSweepError as error:
        assert "no disk space left to write" in str(error)  # noqa: PT017 - a lease may fit, or not
    else:
        stream.release()
    assert not is_held(run)
    assert stream.owner is None
    assert {path.name for path in small_disk.iterdir()} == {"filler", "run", "stream"}


@pytest.mark.parametrize(
    ("obstacle", "line"),
    [
        (
            lambda path: path.mkdir(),
            "Is a directory; move away what is in its place, then the same command goes on",
        ),
        (lambda path: (path.mkdir(), (path / "full").touch()), "Is a directory; move away"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(
    tmp_path: Path, obstacle: Callable[[Path], object], line: str
) -> None:
    obstacle(tmp_path / "x.json")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SaeSweepError, match=rf"cannot write .*x\.json: {line}"):
        write_json(tmp_path / "x.json", 1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("obstacle", ["file", "dangling link"])
def test_what_is_in_the_place_of_a_folder_is_named(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "sae"
    path.touch() if obstacle == "file" else path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SaeSweepError, match=r"cannot write .*sae: Not a directory; move away"):
        write_folder_atomic(path, lambda path: (path / "x").write_text("1") and None)
    assert names(tmp_path) == ["sae"]
    with pytest.raises(
        SaeSweepError, match=r"cannot write .*x.json: (Not a directory|File exists); move away"
    ):
        write_json(path / "x.json", 1)


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_is_kept(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    for target in ("theirs", "nowhere"):
        (tmp_path / "x.json").unlink(missing_ok=True)
        (tmp_path / "x.json").symlink_to(tmp_path / target)
        write_json(tmp_path / "x.json", 1)
        assert read_json(tmp_path / "x.json") == 1
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert names(tmp_path) == ["theirs", "x.json"]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.EROFS, "make it writable, or set paths.output or paths.cache elsewhere"),
        (errno.EDQUOT, "no disk space left"),
        (errno.EIO, "the disk failed"),
        (errno.EMFILE, r"allow more open files \(ulimit -n\)"),
        (errno.EFBIG, r"allow larger files \(ulimit -f\)"),
        (errno.ENAMETOOLONG, "choose shorter names"),
        (errno.ENXIO, "look at the disk"),
    ],
)
@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_every_error_of_a_disk_is_one_line_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, line: str, moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, moment, fail)
    monkeypatch.setattr(os, "replace", fail if moment == "rename" else os.replace)
    for write in (
        lambda: write_json(tmp_path / "x.json", 1),
        lambda: write_folder_atomic(tmp_path / "sae", lambda path: (path / "x").write_text("1") and None),
    ):
        with pytest.raises(SaeSweepError, match=line) as raised:
            write()
        assert "\n" not in str(raised.value)
        assert "the same command goes on" in str(raised.value)
        assert names(tmp_path) == []


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SaeSweepError, match=r"cannot read .*bad\.json"):
        read_json(tmp_path / "bad.json")


def test_cache_folder_follows_the_config_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert paths.cache_folder(None) == Path("/somewhere/sae_sweep")
    assert paths.cache_folder("/mine") == Path("/mine")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "special")
    with pytest.raises(OSError, match=r"it is not a file: .*special"):
        regular(tmp_path / "special")
    assert regular(tmp_path / "nothing") == tmp_path / "nothing"  # opening it says that it is missing
