"""What is refused before anything trains: short held-out text, and a tokenizer of another model."""

import json
import shutil
from pathlib import Path

import pytest

from sae_sweep.activations.model_files import ASSETS
from sae_sweep.config import (
    ConfigError,
    FilesDataset,
    HubDataset,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.plan.known import refuse_known_problems
from sae_sweep.store import PlannedRun, RunFolder
from tests.conftest import Cli
from tests.e2e.conftest import text_folder

__all__ = ["text_folder"]

PICO = ModelConfig(path="bundled:gpt2-pico")


def known(tmp_path: Path, **keys: object) -> list[str]:
    config = RunConfig(**{"architecture": TopKConfig(), "model": PICO, **keys})  # type: ignore[arg-type]
    run = PlannedRun("mine", "id", "group", config, RunFolder(tmp_path / "mine"), {})
    return refuse_known_problems([run, run], tmp_path)


def files(tmp_path: Path, *texts: str) -> FilesDataset:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    return FilesDataset(path=str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("model", [PICO, ModelConfig()])
def test_held_out_text_that_fills_no_sequence_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    texts = [f"{number} short" for number in range(40)]  # of which two are held out
    with pytest.raises(ConfigError) as caught:
        known(tmp_path, model=model, dataset=files(tmp_path, *texts))
    (problem,) = caught.value.problems
    assert "does not fill one sequence of 128 tokens: give more text" in problem
    packing = PackingConfig(seq_len=4)
    assert known(tmp_path, model=model, dataset=files(tmp_path, *texts), packing=packing) == [
        f"dataset.path={tmp_path / 'a.jsonl'}: 1 file, 40 documents"
    ]


def test_without_a_tokenizer_every_byte_counts_so_that_nothing_good_is_refused(tmp_path: Path) -> None:
    """130 bytes are 27 tokens of the bundled model, which is too few; of `gpt2` that is not known here."""
    text = files(tmp_path, *(f"{number} " + "Well, hello there. " * 7 for number in range(2)))
    assert known(tmp_path, model=ModelConfig(), dataset=text)
    with pytest.raises(ConfigError, match="does not fill one sequence"):
        known(tmp_path, dataset=text)


def test_a_text_on_the_hub_is_not_opened(tmp_path: Path) -> None:
    hub = HubDataset(name="tales", path="someone/tales", revision="abc", files="*.parquet")
    assert known(tmp_path, dataset=hub) == []


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "gpt2-pico", tmp_path / "model"))


@pytest.mark.parametrize(("special", "refused"), [(False, True), (True, False)])
def test_a_token_that_text_can_have_and_the_embedding_lacks_is_refused(
    tmp_path: Path, special: bool, refused: bool
) -> None:
    folder = copied(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": 4096, "content": "@@", "special": special}
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    text = files(tmp_path, *(f"{number} " * 300 for number in range(20)))
    if not refused:
        known(tmp_path, model=ModelConfig(path=str(folder)), dataset=text)
        return
    with pytest.raises(ConfigError) as caught:
        known(tmp_path, model=ModelConfig(path=str(folder)), dataset=text)
    assert caught.value.problems == (
        f"model.path={folder}: its tokenizer has token 4096, and its weights know 4096 tokens: "
        "put the tokenizer of this model there",
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    folder = copied(tmp_path)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(SaeSweepError) as caught:
        known(tmp_path, model=ModelConfig(path=str(folder)), dataset=files(tmp_path, "one", "two"))
    assert str(caught.value).startswith(f"cannot read {folder / 'tokenizer.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the hub in the hub's cache."""
    root = tmp_path / "hub" / "models--someone--lm"
    folder = Path(shutil.copytree(ASSETS / "gpt2-pico", root / "snapshots" / "abc"))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root.parent))
    return folder


def test_what_the_hubs_cache_knows_of_a_model_is_known(tmp_path: Path, cached: Path) -> None:
    text = files(tmp_path, *(f"{number} " * 300 for number in range(20)))
    lm = ModelConfig(path="someone/lm")
    packing = PackingConfig(seq_len=257)
    known(tmp_path, model=lm, dataset=text)
    known(tmp_path, model=ModelConfig(path="someone/else"), dataset=text, packing=packing, layer=12)
    known(tmp_path, model=ModelConfig(path="no/name/of/one"), dataset=text)
    with pytest.raises(ConfigError) as caught:
        known(tmp_path, model=lm, dataset=text, packing=packing, layer=12)
    assert caught.value.problems == (
        "layer=12: lm has layers 0 to 11",
        "packing.seq_len=257: lm reads at most 256 tokens",
    )
    short = files(tmp_path, *(f"{number} " + "Well, hello there. " * 7 for number in range(2)))
    with pytest.raises(ConfigError, match="does not fill one sequence"):
        known(tmp_path, model=lm, dataset=short)


WORDS = ("model=gpt2-pico", "dataset=files", "layer=2", "dictionary=4", "plan.tflops=1")


@pytest.mark.parametrize("task", ["plan", "train"])
def test_the_command_line_says_so_in_a_line(cli: Cli, tmp_path: Path, task: str) -> None:
    text = files(tmp_path, *(f"{number} short" for number in range(40)))
    result = cli(*WORDS, f"task={task}", f"dataset.path={text.path}", "tracking=none")
    assert result.code == 2
    assert "does not fill one sequence of 128 tokens" in result.err
    assert not list(Path.cwd().glob("multirun/*/*"))


def test_a_plan_says_what_a_text_holds_and_refuses_a_context_beyond_the_models(
    cli: Cli, text_folder: Path
) -> None:
    words = (*WORDS, "task=plan", f"dataset.path={text_folder}")
    assert "40 files, 40 documents" in " ".join(cli(*words).out.split())
    result = cli(*words, "packing.seq_len=257")
    assert result.code == 2
    assert "packing.seq_len=257: gpt2-pico reads at most 256 tokens" in result.err
