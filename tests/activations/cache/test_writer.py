"""Filling the cache: it resumes, extends, refuses a disk that is too small, and has one writer at a time."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sae_sweep.activations import LanguageModel
from sae_sweep.activations.cache import writer
from sae_sweep.activations.cache.layout import CacheFolder
from sae_sweep.activations.cache.manifest import load_manifest
from sae_sweep.config import SaeSweepError
from sae_sweep.store import Lease, locks
from sae_sweep.store.partial import partial_path
from tests.activations.cache.conftest import Bench
from tests.activations.cache.test_reader import assert_same
from tests.activations.test_stream import next_batches
from tests.disks import fill_up


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "POLL_S", 0.02)


def test_the_manifest_lists_what_is_cached(bench: Bench) -> None:
    bench.fill(1, 2, steps=20)
    plain = json.loads(bench.folder.manifest.read_text())
    assert (plain["d_in"], plain["dtype"], plain["batch"]) == (16, "float32", 32)
    assert plain["stream"]["fingerprints"] == {"corpus": "c"}
    assert plain["stream"]["packing"]["seq_len"] == 16
    step = 0
    for number, shard in enumerate(plain["shards"]):
        assert (shard["number"], shard["first_step"], shard["position"]["step"]) == (number, step, step)
        assert set(shard["files"]) == {"1", "2", "tokens"}
        for record in shard["files"].values():
            assert (bench.folder.root / record["file"]).stat().st_size == record["bytes"]
        step += shard["steps"]
    assert step >= 20
    assert not Lease(bench.folder.root).marker.exists()


def test_what_is_there_is_not_computed_again(bench: Bench) -> None:
    bench.fill(1, 2, steps=12)
    passes, files = len(bench.computed), bench.files()
    bench.fill(1, steps=12)
    bench.fill(2, steps=3)
    assert len(bench.computed) == passes
    assert bench.files() == files


def test_more_steps_continue_after_the_last(bench: Bench) -> None:
    bench.fill(1, steps=8)
    files = bench.files()
    assert_same(next_batches(bench.fill(1, steps=24), 24), next_batches(bench.stream([1]), 24))
    assert bench.files().items() > files.items()


def test_another_layer_is_added_to_what_is_there(bench: Bench) -> None:
    bench.fill(1, steps=12)
    files = bench.files()
    bench.computed.clear()
    cached = bench.fill(0, 1, steps=20)
    assert bench.files().items() > files.items()
    assert set(bench.computed) == {(0,), (0, 1)}  # layer 0 alone while layer 1 is cached, then both
    assert_same(next_batches(cached, 20), next_batches(bench.stream([0, 1]), 20))


def test_a_layer_that_stays_behind_is_caught_up(bench: Bench) -> None:
    bench.fill(1, 2, steps=6)
    bench.fill(2, steps=20)
    assert_same(next_batches(bench.fill(1, 2, steps=20), 20), next_batches(bench.stream([1, 2]), 20))


def test_changed_text_does_not_go_beside_what_is_cached(bench: Bench) -> None:
    bench.fill(1, steps=6)
    identity, folder = bench.identity, bench.folder
    bench.config = Bench(bench.lm, bench.root, data_seed=5).config
    with pytest.raises(SaeSweepError, match="the text no longer gives what was cached in shard 0; remove"):
        writer.fill(folder, identity, {2: 6}, bench.stream, d_in=16, batch=32)


def test_a_full_disk_is_refused_before_the_first_byte(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=1000))
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(
            SaeSweepError, match=r"needs 0\.00 GiB more .* set paths\.cache=FOLDER .* activations=stream"
        ),
    ):
        bench.fill(1, 2, steps=20)
    assert "caching 640 tokens of layers 1, 2: up to 0.00 GiB" in caplog.text
    assert not bench.root.exists()
    assert bench.computed == []


def test_the_estimate_is_close(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []

    class Usage:
        @property
        def free(self) -> float:
            return _Limit(needed)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    bench.fill(1, 2, steps=20)
    real = sum((bench.folder.root / name).stat().st_size for name in bench.files())
    assert 0.8 * real < needed[0] < 1.5 * real


class _Limit(float):
    """Unlimited free space, which records the sizes that it is compared with."""

    def __new__(cls, needed: list[int]) -> "_Limit":
        self = super().__new__(cls, 1e18)
        self._needed = needed  # type: ignore[attr-defined]
        return self

    def __lt__(self, other: float) -> bool:
        self._needed.append(int(other))  # type: ignore[attr-defined]
        return False


WRITER = """
import sys
from pathlib import Path
import torch
from sae_sweep.activations import load_language_model
from sae_sweep.config import ModelConfig
from sae_sweep.store import locks
from tests.activations.cache.conftest import Bench
locks.HEARTBEAT_S, locks.DEAD_AFTER_S = map(float, sys.argv[3:])
lm = load_language_model(ModelConfig(path=sys.argv[1], dtype="float32"), torch.device("cpu"))
Bench(lm, Path(sys.argv[2])).fill(1, 2, steps=1_000_000)
"""


def start_writer(model_folder: Path, root: Path, stderr: int | None = None) -> subprocess.Popen[bytes]:
    words = [str(model_folder), str(root), str(locks.HEARTBEAT_S), str(locks.DEAD_AFTER_S)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *words], stderr=stderr)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process is None or process.poll() is None, "the writer ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shards_of(folder: CacheFolder) -> int:
    manifest = load_manifest(folder)
    return 0 if manifest is None else len(manifest.shards)


def test_a_disk_that_fills_up_keeps_what_is_whole_and_the_same_call_goes_on(
    lm: LanguageModel, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(lm, small_disk / "cache")
    bench.fill(1, steps=7)
    whole = bench.files()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_check_space", lambda *_: fill_up(small_disk))
        with pytest.raises(SaeSweepError, match=r"^no disk space left to write .*: free some"):
            bench.fill(1, steps=21)
    assert bench.files() == whole
    assert not list(bench.folder.root.parent.rglob(".*"))
    fill_up(small_disk, 2**18)
    assert_same(next_batches(bench.fill(1, steps=21), 21), next_batches(bench.stream([1]), 21))


@pytest.mark.parametrize(
    "name", ["notes.txt", ".shard-000099_tokens.safetensors.a1b2c3d_.safetensors", "shard-1.bin"]
)
def test_what_is_not_ours_in_a_stream_that_is_filled_stays(bench: Bench, name: str) -> None:
    bench.fill(1, steps=7)
    (bench.folder.root / name).write_text("mine")
    bench.fill(1, steps=14)
    assert (bench.folder.root / name).read_text() == "mine"


@pytest.mark.slow(reason="the writer is a process of its own, which loads torch and the model")
def test_a_killed_writer_loses_at_most_a_shard(lm: LanguageModel, model_folder: Path, tmp_path: Path) -> None:
    bench = Bench(lm, tmp_path)
    process = start_writer(model_folder, tmp_path)
    wait_for(lambda: shards_of(bench.folder) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done, files = shards_of(bench.folder), bench.files()
    leftover = partial_path(bench.folder.root / "shard-000099_tokens.safetensors")
    leftover.write_bytes(b"half")
    kept = {name: at for name, at in files.items() if int(name[6:12]) < done}
    assert Lease(bench.folder.root).marker.exists()  # left by the killed writer
    assert Lease(bench.folder.root).owner is None
    steps = 7 * (done + 2)
    assert_same(next_batches(bench.fill(1, 2, steps=steps), steps), next_batches(bench.stream([1, 2]), steps))
    assert bench.files().items() >= kept.items()
    assert not leftover.exists()
    assert not Lease(bench.folder.root).marker.exists()


@pytest.mark.slow(reason="the writer is a process of its own, which loads torch and the model")
def test_a_suspended_writer_is_replaced_and_notices(
    lm: LanguageModel, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(locks, "DEAD_AFTER_S", 1.5)
    bench = Bench(lm, tmp_path)
    process = start_writer(model_folder, tmp_path, subprocess.PIPE)
    wait_for(lambda: shards_of(bench.folder) >= 1, process)
    process.send_signal(signal.SIGSTOP)
    steps = 7 * (shards_of(bench.folder) + 2)
    bench.fill(1, 2, steps=steps)
    manifest = bench.folder.manifest.read_bytes()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"is now written by nobody: this process did not run for more than 1.5 s" in err
    assert bench.folder.manifest.read_bytes() == manifest
    assert_same(next_batches(bench.open(1, 2), steps), next_batches(bench.stream([1, 2]), steps))


def test_a_replaced_writer_whose_file_is_gone_names_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: CacheFolder, *_: object) -> None:
        Lease(folder.root).marker.unlink()
        raise SaeSweepError("no such file")

    monkeypatch.setattr(writer, "write_part", fail)
    with pytest.raises(SaeSweepError, match="is now written by nobody"):
        bench.fill(1, steps=6)


def test_the_second_writer_waits_and_then_reads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Bench(bench.lm, bench.root)
    first_shard = threading.Event()
    go_on = threading.Event()
    write = writer.write_part

    def held_up(*args: object) -> object:
        if threading.current_thread() is filler:
            first_shard.set()
            assert go_on.wait(60)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write_part", held_up)
    filler = threading.Thread(target=lambda: slow.fill(1, steps=12))
    filler.start()
    assert first_shard.wait(60)
    with caplog.at_level(logging.INFO):
        waiter = threading.Thread(target=lambda: bench.fill(1, steps=12))
        waiter.start()
        wait_for(lambda: f"is being filled by process {os.getpid()} on" in caplog.text)
        assert waiter.is_alive()
        go_on.set()
        waiter.join(60)
        filler.join(60)
    assert not waiter.is_alive()
    assert bench.computed == []  # the waiter computed nothing
    assert_same(next_batches(bench.open(1), 12), next_batches(slow.stream([1]), 12))
