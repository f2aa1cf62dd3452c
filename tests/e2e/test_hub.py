"""The command of the README's first page, against a stand-in of the hub that also dies in mid-stream."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub import Server
from tests.tracking.offline import offline_runs

ASSETS = Path(__file__).parents[2] / "sae_sweep" / "assets" / "gpt2-pico"
DATASETS = {"Skylion007/openwebtext": "plain_text", "roneneldan/TinyStories": "data"}
COMMAND = [
    *("-m", "dataset=owt,tinystories", "seed=42,49", "sweep=x"),
    *("tokens=24_576", "batch=128", "dictionary=1", "evaluation.tokens=1_024"),
    *("activations.buffer_tokens=2_048", "tracking.log_every=8"),
]
PARTS = 64
"""Parts of the data sets that a hub serves before it dies: it has read the held-out text by then."""


def fill(root: Path) -> None:
    """A model of GPT-2's shape, and two data sets of three shards, as the hub has them."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 12, "n_embd": 48, "n_head": 4, "vocab_size": 4096}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(root / "models/gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / name, root / "models/gpt2" / name)
    for name, folder in DATASETS.items():
        shards = root / "datasets" / name / folder
        shards.mkdir(parents=True)
        for shard in range(3):
            words = [" ".join(f"{(shard + row * i) % 997}" for i in range(40)) for row in range(120)]
            rows = {"text": [f"{name} {row}: {text}" for row, text in enumerate(words)]}
            pq.write_table(pa.table(rows), shards / f"train-{shard}.parquet", row_group_size=20)


class Launch:
    """A launch of the command in a process."""

    def __init__(self, hub: Server, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "log"
        places = {"HF_HOME": str(folder / "hf"), "XDG_CACHE_HOME": str(folder / "cache")}
        modes = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "WANDB_MODE": "offline"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sae_sweep", *COMMAND],
                cwd=folder,
                env={**os.environ, **places, **modes},
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 240
        while text not in self.said:
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        return self._process.wait(timeout=240)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.parts[-3]: file.read_bytes() for file in folder.glob("multirun/x/*/sae/*.safetensors")}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Server:
    root = tmp_path_factory.mktemp("hub")
    fill(root)
    return Server(root)


@pytest.fixture(scope="module")
def undisturbed(hub: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sweep with a hub that always answers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with hub:
        launch = Launch(hub, folder)
        assert launch.ended() == 0, launch.said
    return folder


@pytest.mark.slow(reason="a sweep of four runs from a hub, in a process")
def test_the_asked_command_trains_four_runs_and_tracks_them(undisturbed: Path) -> None:
    assert len(weights(undisturbed)) == 4
    tracked = offline_runs(undisturbed / "multirun" / "x")
    assert [run.exit_code for run in tracked] == [0] * 5
    of_runs = [run.config for run in tracked if run.run.job_type == "train"]
    trained = {(config["dataset"], config["seed"]) for config in of_runs}
    assert trained == {(name, seed) for name in ("owt", "tinystories") for seed in (42, 49)}


@pytest.mark.slow(reason="a sweep from a hub that dies, in a process, and a wait of seconds")
def test_a_hub_that_dies_in_mid_stream_and_comes_back_changes_nothing(
    hub: Server, undisturbed: Path, tmp_path: Path
) -> None:
    with hub.dies_after(PARTS):
        launch = Launch(hub, tmp_path)
        launch.wait_for("trying again in")
        assert hub.died()
    with hub:
        assert launch.ended() == 0, launch.said
    assert weights(tmp_path) == weights(undisturbed)


@pytest.mark.slow(reason="a sweep from a hub that dies, in two processes")
def test_what_is_trained_when_the_hub_dies_is_not_trained_again(
    hub: Server, undisturbed: Path, tmp_path: Path
) -> None:
    with hub.dies_after(PARTS):
        launch = Launch(hub, tmp_path)
        launch.wait_for("trying again in")
        assert launch.stop() == 128 + signal.SIGTERM, launch.said
    saved = list(tmp_path.glob("multirun/x/*/checkpoint/state.safetensors"))
    assert saved, launch.said
    logged = [(file.parents[1] / "history.jsonl").read_bytes() for file in saved]
    assert all(logged)
    with hub:
        again = Launch(hub, tmp_path)
        assert again.ended() == 0, again.said
    assert weights(tmp_path) == weights(undisturbed)
    for file, before in zip(saved, logged, strict=True):
        assert (file.parents[1] / "history.jsonl").read_bytes().startswith(before)
