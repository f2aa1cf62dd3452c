"""Sweeps that read the activation cache, and `task=cache`."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from sae_sweep.activations import ActivationStream, LanguageModel
from sae_sweep.saes import load_sae
from sae_sweep.store import Lease
from tests.conftest import Cli
from tests.e2e.test_process import start
from tests.e2e.test_sweep import run_folders, status

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture
def words(small: list[str], tmp_path: Path) -> list[str]:
    return [*small, "tracking=none", "sweep=s", f"paths.cache={tmp_path / 'cache'}"]


def cached_folder(tmp_path: Path) -> Path:
    (folder,) = (path for path in (tmp_path / "cache" / "activations").iterdir() if path.is_dir())
    return folder


def assert_equal_weights(one: Path, other: Path) -> None:
    names = [run.name for run in run_folders(one)]
    assert names == [run.name for run in run_folders(other)]
    for name in names:
        assert status(one / name)["run_id"] == status(other / name)["run_id"]
        theirs = load_sae(other / name).state_dict()
        for key, weight in load_sae(one / name).state_dict().items():
            assert torch.equal(weight, theirs[key]), (name, key)


@pytest.mark.slow(reason="all dtypes of two layers are trained twice, twelve runs")
def test_cached_and_streamed_weights_are_the_same_bits(cli: Cli, words: list[str]) -> None:
    swept = [*words, "tokens=5_120", "layer=2,3", "activations.dtype=float32,bfloat16,float16"]
    assert cli(*swept, "sweep=streamed").code == 0
    result = cli(*swept, "sweep=cached", "activations=cache")
    assert result.code == 0, result.err
    assert result.err.count("caching 5,120 tokens of layers 2, 3") == 3
    assert_equal_weights(Path("multirun/streamed"), Path("multirun/cached"))


@pytest.mark.slow(reason="every architecture is trained twice, eight runs")
def test_every_architecture_learns_the_same_bits_from_the_cache(cli: Cli, words: list[str]) -> None:
    swept = [*words, "tokens=5_120", "architecture=topk,batchtopk,jumprelu,relu", "activations.dtype=float16"]
    assert cli(*swept, "sweep=streamed", "fuse=false").code == 0
    assert cli(*swept, "sweep=cached", "activations=cache").code == 0
    assert_equal_weights(Path("multirun/streamed"), Path("multirun/cached"))


@pytest.mark.slow(reason="a cache is filled, then read by two runs")
def test_a_filled_cache_is_read_and_never_computed(
    cli: Cli, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = cli(*words, "layer=2,3", "tokens=5_120,10_240", "task=cache")
    assert filled.code == 0, filled.err
    assert not Path("multirun").exists()
    files = {file: file.stat().st_mtime_ns for file in cached_folder(tmp_path).glob("*.safetensors")}
    assert len(files) == 3 * 3  # 3 buffers; two layers and the token ids
    monkeypatch.setattr(
        ActivationStream, "_compute_buffer", lambda self: pytest.fail("the stream was computed")
    )
    result = cli(*words, "layer=2,3", "activations=cache")
    assert result.code == 0, result.err
    assert {file: file.stat().st_mtime_ns for file in files} == files


@pytest.mark.slow(reason="the sweep that is killed is a process that imports torch first")
def test_a_run_goes_on_from_stream_to_cache(cli: Cli, words: list[str], tmp_path: Path) -> None:
    longer = [word for word in words if not word.startswith("tokens=")] + ["tokens=51_200"]
    assert cli(*longer, "sweep=whole").code == 0
    process = start([*longer, "launcher.checkpoint_every_min=1e-4"], tmp_path)
    wait_for_checkpoint(process, tmp_path / "multirun" / "s")
    process.kill()
    process.communicate()
    result = cli(*longer, "activations=cache")
    assert result.code == 0, result.err
    assert "resumed at" in result.err
    assert_equal_weights(Path("multirun/s"), Path("multirun/whole"))


def wait_for_checkpoint(process: "subprocess.Popen[str]", sweep: Path) -> None:
    while not list(sweep.glob("*/checkpoint/state.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.slow(reason="three sweeps of two layers, and the cache between them, follow each other")
def test_a_damaged_file_fails_its_layer_and_can_be_mended(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert cli(*words, "layer=2,3", "task=cache").code == 0
    damaged = cached_folder(tmp_path) / "shard-000001_layer-03.safetensors"
    whole = bytearray(damaged.read_bytes())
    whole[-1] ^= 1
    damaged.write_bytes(whole)

    result = cli(*words, "layer=2,3", "activations=cache")
    assert result.code == 1
    states = {run.name.split("_")[1]: status(run) for run in run_folders(Path("multirun/s"))}
    assert states["L2"]["state"] == "done"
    assert states["L3"]["state"] == "failed"
    assert f"{damaged} is damaged" in str(states["L3"]["error"])

    verified = cli(*words, "task=cache", "action=verify")
    assert verified.code == 1
    assert verified.out.splitlines()[0].startswith(f"{damaged} is damaged")
    assert cli(*words, "task=cache", "action=prune").code == 0
    assert not damaged.exists()
    assert "unfinished" in cli(*words, "task=cache", "action=list").out
    assert cli(*words, "task=cache", "action=verify").code == 0

    assert cli(*words, "layer=2,3", "activations=cache").code == 0
    assert damaged.exists()
    assert cli(*words, "sweep=streamed", "layer=2,3").code == 0
    assert_equal_weights(Path("multirun/s"), Path("multirun/streamed"))


@pytest.mark.slow(reason="two caches are filled with real activations first")
def test_the_cache_is_listed_and_removed(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert "nothing is cached in" in cli(*words, "task=cache", "action=list").out
    assert cli(*words, "layer=2,3", "task=cache").code == 0
    folder = cached_folder(tmp_path)
    listed = cli(*words, "task=cache", "action=list").out.splitlines()
    assert listed[0].split()[:4] == ["stream", "model", "dataset", "layers"]
    assert listed[2].split()[:4] == [folder.name, "gpt2-pico", "files", "2,3"]
    assert "complete" in listed[2]

    wrong = cli(*words, "task=cache", "action=remove", "stream=zzz")
    assert wrong.code == 1
    assert f"stream=zzz: not one of the streams in {folder.parent}: {folder.name}" in wrong.err
    unnamed = cli(*words, "task=cache", "action=remove")
    assert unnamed.code == 2
    assert "action=remove needs stream=NAME" in unnamed.err
    assert cli(*words, "task=cache", "action=remove", f"stream={folder.name[:5]}").code == 0
    assert not folder.exists()


@pytest.mark.slow(reason="a cache is filled with real activations first")
def test_prune_removes_what_no_version_of_ours_reads(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert cli(*words, "task=cache").code == 0
    manifest = cached_folder(tmp_path) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": "0.1"}))
    refused = cli(*words, "activations=cache")
    assert refused.code == 1
    assert "is of version '0.1'" in refused.err
    assert "unusable" in cli(*words, "task=cache", "action=list").out
    verified = cli(*words, "task=cache", "action=verify")
    assert verified.code == 1
    assert "is of version '0.1'" in verified.out
    assert "freed 0.0" in cli(*words, "task=cache", "action=prune").out
    assert not manifest.parent.exists()
    assert cli(*words, "activations=cache").code == 0


@pytest.mark.slow(reason="a cache is filled twice, and read by a run")
def test_a_stopped_fill_goes_on_later(
    cli: Cli, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = ActivationStream.next_buffer, []

    def stopped_at_the_second(self: ActivationStream) -> object:
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationStream, "next_buffer", stopped_at_the_second)
        result = cli(*words, "activations=cache")
    assert result.code == 143, result.err
    assert "launch the same command again to resume" in result.err
    assert [status(run)["state"] for run in run_folders(Path("multirun/s"))] == ["pending"]
    assert not Lease(cached_folder(tmp_path)).marker.exists()
    kept = (cached_folder(tmp_path) / "shard-000000_layer-02.safetensors").stat().st_mtime_ns
    assert cli(*words, "activations=cache").code == 0
    assert (cached_folder(tmp_path) / "shard-000000_layer-02.safetensors").stat().st_mtime_ns == kept


def test_choices_are_named(cli: Cli, words: list[str]) -> None:
    result = cli(*words, "task=cache", "action=clean", "activations.source=disk")
    assert result.code == 2
    assert "action=clean: not one of fill, list, verify, prune, remove" in result.err
    assert "activations.source=disk: not one of stream, cache" in result.err


@pytest.mark.slow(reason="a cache is filled, then read by a run that is evaluated")
def test_the_language_model_is_still_there_for_the_evaluation(
    cli: Cli, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*words, "task=cache").code == 0
    used: list[int] = []
    losses = LanguageModel.losses
    monkeypatch.setattr(
        LanguageModel, "losses", lambda self, *args, **keys: used.append(1) or losses(self, *args, **keys)
    )
    assert cli(*words, "activations=cache").code == 0
    assert used
