"""Who may write."""

import json
import os
import time
from pathlib import Path

import pytest

from sae_sweep.activations.cache import CacheFolder, lock
from sae_sweep.config import SaeSweepError


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "abc")


def rewrite(folder: CacheFolder, **keys: object) -> None:
    owner = json.loads(folder.lock.read_text())
    folder.lock.write_text(json.dumps({**owner, **keys}))


def test_one_holds_it(folder: CacheFolder) -> None:
    with lock.try_to_hold(folder) as mine:
        assert mine is not None
        owner = lock.holder(folder)
        assert owner is not None
        assert owner.pid == os.getpid()
        with lock.try_to_hold(folder) as second:
            assert second is None
        assert lock.holder(folder) == owner
    assert lock.holder(folder) is None
    assert not folder.lock.exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(folder: CacheFolder) -> None:
    with lock.try_to_hold(folder):
        rewrite(folder, pid=2**22 + 1, token="other")
        with lock.try_to_hold(folder) as second:
            assert second is not None
            second.check()


def test_another_host_is_judged_by_its_heartbeat(folder: CacheFolder) -> None:
    with lock.try_to_hold(folder):
        rewrite(folder, host="elsewhere", pid=2**22 + 1, token="other")
        with lock.try_to_hold(folder) as second:
            assert second is None
        old = time.time() - lock.DEAD_AFTER_S - 5
        os.utime(folder.lock, (old, old))
        with lock.try_to_hold(folder) as third:
            assert third is not None


def test_who_lost_the_lock_is_told(folder: CacheFolder) -> None:
    with lock.try_to_hold(folder) as mine:
        assert mine is not None
        mine.check()
        rewrite(folder, token="other", pid=7)
        with pytest.raises(SaeSweepError, match=r"is now written by process 7 on .* launch the same command"):
            mine.check()
    assert folder.lock.exists()  # not ours to remove


def test_the_heart_beats(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with lock.try_to_hold(folder):
        os.utime(folder.lock, (1, 1))
        deadline = time.monotonic() + 60
        while folder.lock.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_cannot_be_read_is_respected_until_it_is_old(folder: CacheFolder) -> None:
    folder.root.mkdir()
    folder.lock.write_text("{")
    with lock.try_to_hold(folder) as mine:
        assert mine is None
    os.utime(folder.lock, (1, 1))
    with lock.try_to_hold(folder) as mine:
        assert mine is not None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SaeSweepError, match=r"cannot write .*/file/abc"),
        lock.try_to_hold(CacheFolder(tmp_path / "file" / "abc")),
    ):
        pass
