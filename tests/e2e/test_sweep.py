"""Whole sweeps through the command line, and the files that they write."""

import csv
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from sae_sweep.config import run_from_dict
from sae_sweep.saes import load_sae
from sae_sweep.store import RunFolder, hold
from tests.conftest import Cli

RUN_FILES = {
    *("config.yaml", "status.json", "train.log", "history.jsonl", "metrics.json"),
    *("sae/cfg.json", "sae/sae_weights.safetensors"),
    *(
        "features/statistics.parquet",
        "features/histograms.json",
        "features/density.png",
        "features/activations.png",
        "features/frequency.png",
    ),
}
PNG = b"\x89PNG\r\n\x1a\n"


def sweep_folder() -> Path:
    (folder,) = (path for path in Path("multirun").iterdir() if path.is_dir())
    return folder


def run_folders(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/status.json"))


def files_below(folder: Path) -> set[str]:
    hidden = {".lock"}
    return {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name not in hidden
    }


def history(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


def test_a_sweep_leaves_what_the_readme_says(cli: Cli, small: list[str]) -> None:
    """The one whole sweep of `make test`: four runs, evaluated, tracked and compared, which takes seconds."""
    result = cli("-m", *small, "seed=42,49", "architecture=topk,jumprelu")
    assert result.code == 0, result.err
    sweep = sweep_folder()
    runs = run_folders(sweep)
    assert len(runs) == 4
    assert result.err.count("40 files, 40 documents") == 1
    for run in runs:
        assert files_below(run) == RUN_FILES
        assert (run / "train.log").read_text().count("40 files, 40 documents") == 1
        assert status(run)["state"] == "done"
        config = run_from_dict(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))  # type: ignore[arg-type]
        assert config.tokens == 10_240
        points = [line for line in history(run) if "loss" in line]
        assert [point["tokens"] for point in points] == [512 * step for step in (5, 10, 15, 20)]
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["trained_tokens"] == 10_240
        assert metrics["ce_clean"] < metrics["ce_zero"]
        assert 0 <= metrics["init_match"] <= 1
        assert load_sae(run).W_dec.shape == (512, 128)
    plan = json.loads((sweep / "plan.json").read_text())
    assert {run["name"] for run in plan["runs"]} == {run.name for run in runs}
    assert len({run["group"] for run in plan["runs"]}) == 1
    matching = sweep / "analysis" / "matching"
    with (matching / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 6
    assert (matching / "matrix.png").read_bytes().startswith(PNG)
    assert (matching / "pairs.parquet").exists()
    assert len(list((sweep / "wandb").glob("offline-run-*"))) == 5  # four runs and the comparison
    assert "differ only in" in result.out


@pytest.mark.usefixtures("without_figures")
def test_equal_seeds_share_their_start_and_say_they_are_undertrained(cli: Cli, small: list[str]) -> None:
    result = cli(*small, "k=16,32", "optimizer.lr=1e-6", "tracking=none")
    assert result.code == 0, result.err
    with (sweep_folder() / "analysis" / "matching" / "pairs.csv").open() as file:
        (pair,) = csv.DictReader(file)
    assert float(pair["ratio_a_in_b"]) == 1.0
    assert float(pair["init_match_a"]) == 1.0
    assert pair["undertrained"].lower() == "true"
    assert "undertrained" in result.out


@pytest.mark.usefixtures("without_figures")
def test_the_same_command_again_trains_nothing(cli: Cli, small: list[str]) -> None:
    assert cli(*small, "seed=42,49", "tracking=none").code == 0
    sweep = sweep_folder()
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/sae/*")}
    result = cli(*small, "seed=49,42", "tracking=none")
    assert result.code == 0
    assert "2 runs, 2 already done" in result.err
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/sae/*")} == before


@pytest.mark.usefixtures("without_figures")
def test_another_evaluation_key_evaluates_again_and_trains_nothing(cli: Cli, small: list[str]) -> None:
    assert cli(*small, "tracking=none", "sweep=mine").code == 0
    (run,) = run_folders(Path("multirun/mine"))
    kept = {name: (run / name).read_bytes() for name in ("config.yaml", "status.json", "sae/cfg.json")}
    before = json.loads((run / "metrics.json").read_text())
    assert cli(*small, "tracking=none", "sweep=mine", "evaluation.tokens=512").code == 0
    after = json.loads((run / "metrics.json").read_text())
    assert after["evaluation"] == {**before["evaluation"], "tokens": 512}
    assert after["ce_clean"] != before["ce_clean"]
    assert after["trained_tokens"] == before["trained_tokens"]
    assert {name: (run / name).read_bytes() for name in kept} == kept
    (planned,) = json.loads(Path("multirun/mine/plan.json").read_text())["runs"]
    assert planned["config"]["evaluation"] == after["evaluation"]
    (run / "metrics.json").unlink()  # and lost ones come back
    assert cli(*small, "tracking=none", "sweep=mine").code == 0
    again = json.loads((run / "metrics.json").read_text())
    assert {**again, "seconds": None} == {**before, "seconds": None}


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_history_of_a_finished_run_is_not_continued(cli: Cli, small: list[str]) -> None:
    command = [*small, "tracking=none", "sweep=mine"]
    assert cli(*command).code == 0
    (run,) = run_folders(Path("multirun/mine"))
    file = run / "history.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"loss": 0.', b'"loss": 7.', 1).replace(b'"loss": 1.', b'"loss": 8.', 1))
    assert file.read_bytes() != whole
    assert cli(*command, "evaluation.tokens=512").code == 1
    assert "history.jsonl is damaged (its checksum differs): put it back as it was" in str(
        status(run)["error"]
    )
    file.write_bytes(whole)
    assert cli(*command, "evaluation.tokens=512").code == 0
    assert file.read_bytes().startswith(whole)
    assert len(history(run)) > len(whole.splitlines())


@pytest.mark.usefixtures("without_figures")
def test_how_a_folder_is_spelled_and_called_makes_no_other_run(
    cli: Cli, small: list[str], text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    rest = [word for word in small if not word.startswith("dataset.path=")]
    out = ["tracking=none", "sweep=mine", f"paths.output={here}/multirun"]
    assert cli(*rest, *out, f"dataset.path={text_folder.name}").code == 0
    (text_folder.parent / "link").symlink_to(text_folder)
    spelled = [f"./{text_folder.name}/", str(text_folder), "link"]
    for path in spelled:
        result = cli(*rest, *out, f"dataset.path={path}", "dataset.name=another")
        assert "1 runs, 1 already done" in result.err, result.err
    monkeypatch.chdir(text_folder)
    assert "1 already done" in cli(*rest, *out, "dataset.path=.").err
    assert len(run_folders(here / "multirun/mine")) == 1


@pytest.mark.usefixtures("without_figures")
def test_a_changed_key_is_refused_with_both_values(cli: Cli, small: list[str]) -> None:
    assert cli(*small, "tracking=none", "sweep=mine").code == 0
    result = cli(*small, "tracking=none", "sweep=mine", "seed=43")
    assert result.code == 1
    assert "is nearest: seed is 49 there and 43 here); choose sweep=NAME" in result.err


@pytest.mark.slow(reason="the same runs are trained three times")
@pytest.mark.usefixtures("without_figures")
def test_fused_solo_and_alone_give_the_same_weights(cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "architecture=topk,batchtopk,relu"]
    assert cli(*words, "sweep=fused").code == 0
    assert cli(*words, "sweep=solo", "fuse=false").code == 0
    for run in run_folders(Path("multirun/fused")):
        twin = Path("multirun/solo") / run.name
        for name, weight in load_sae(run).state_dict().items():
            assert torch.equal(weight, load_sae(twin).state_dict()[name]), name


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_diverges_fails_alone(cli: Cli, small: list[str]) -> None:
    result = cli(*small, "tracking=none", "optimizer.lr=1e-3,1e30")
    assert result.code == 1
    states = {str(status(run)["state"]): run for run in run_folders(sweep_folder())}
    assert set(states) == {"done", "failed"}
    bad = states["failed"]
    assert "step" in str(status(bad)["error"])
    assert bad.name in result.err
    assert str(bad / "train.log") in result.err
    assert not (bad / "sae").exists()
    assert (states["done"] / "sae" / "cfg.json").exists()


@pytest.mark.usefixtures("without_figures")
def test_a_folder_that_holds_another_run_is_refused(cli: Cli, small: list[str], text_folder: Path) -> None:
    assert cli(*small, "tracking=none", "sweep=mine").code == 0
    (text_folder / "99.txt").write_text("one more file changes the text " * 20)
    result = cli(*small, "tracking=none", "sweep=mine")
    assert result.code == 1
    assert "holds another run: its text is other; choose sweep=NAME, or move the folder away" in result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("without_figures")
def test_match_compares_again_with_another_threshold(cli: Cli, small: list[str]) -> None:
    assert cli(*small, "seed=42,49", "tracking=none", "sweep=mine", "matching.threshold=0.99").code == 0
    result = cli("task=match", "sweep=mine", "model=gpt2-pico", "dataset=files", "dataset.path=texts",
                 "tracking=none", "matching.threshold=0")  # fmt: skip
    assert result.code == 0, result.err
    assert "matched: cosine > 0," in result.out
    with Path("multirun/mine/analysis/matching/pairs.csv").open() as file:
        (pair,) = csv.DictReader(file)
    assert float(pair["ratio_a_in_b"]) == 1.0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["task=match"], 2, "task=match needs sweep=NAME"),
        (["task=match", "sweep=nowhere"], 1, "no sweep there"),
        (["dataset.path=nowhere"], 1, "nowhere"),
        (["model.path=./nowhere"], 1, "model.path=./nowhere: no such file or folder"),
        (["layer=12"], 2, "layer=12: gpt2-pico has layers 0 to 11"),
        (["packing.seq_len=512"], 2, "gpt2-pico reads at most 256 tokens"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, small: list[str], words: list[str], code: int, message: str) -> None:
    result = cli(*small, "tracking=none", *words)
    assert result.code == code, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(Path().glob("multirun/*/*/sae"))


def test_an_unwritable_output_is_one_line(cli: Cli, small: list[str]) -> None:
    Path("occupied").write_text("a file, not a folder")
    result = cli(*small, "tracking=none", "paths.output=occupied")
    assert result.code == 1
    assert "cannot write" in result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("without_figures")
def test_a_second_launch_of_a_sweep_says_who_holds_it(cli: Cli, small: list[str], tmp_path: Path) -> None:
    words = [*small, "tracking=none", "sweep=twice"]
    assert cli(*words).code == 0
    (status,) = (tmp_path / "multirun" / "twice").glob("*/status.json")
    with hold(RunFolder(status.parent)):
        second = cli(*words)
    assert second.code == 1
    assert f"is held by process {os.getpid()} on {platform.node()}: wait for it, or stop it" in second.err


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow(reason="the counts of five sweeps are compared: fused, one by one, again, cached and read")
def test_the_lm_tokens_of_all_groups_are_told_beside_those_of_single_runs(cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "data_seed=0,1", "tokens=5120,10_240"]
    fused = lm_line(cli(*words, "sweep=fused").err)
    solo = lm_line(cli(*words, "sweep=solo", "fuse=false").err)
    assert (fused.passes, fused.runs, fused.passes_alone) == (2, 4, 4)
    assert (solo.passes, solo.runs, solo.passes_alone) == (4, 4, 4)
    assert fused.tokens < fused.tokens_alone == solo.tokens == solo.tokens_alone
    again = cli(*words, "sweep=solo", "fuse=false").err
    assert "LM: " not in again  # nothing was left to train
    words.append("paths.cache=cache")  # equal streams of other tests lie in the common one
    cached = lm_line(cli(*words, "sweep=cached", "activations=cache").err)
    assert (cached.passes, cached.tokens) == (2, fused.tokens)
    assert cached.tokens_alone == cached.tokens * 3 // 2
    read = cli(*words, "sweep=read", "activations=cache").err
    assert "LM: 0 passes, 0 tokens in 0.0 s, for 4 runs\n" in read


class LMLine(NamedTuple):
    passes: int
    tokens: int
    runs: int
    passes_alone: int
    tokens_alone: int


def lm_line(text: str) -> LMLine:
    found = re.search(
        r"LM: (\d+) passes, ([\d,]+) tokens in [\d.]+ s, for (\d+) runs; "
        r"one by one: (\d+) passes, ([\d,]+) tokens\n",
        text,
    )
    assert found, text
    return LMLine(*(int(number.replace(",", "")) for number in found.groups()))


def _starts_from_another_library(cli: Cli, command: list[str], general: Path) -> None:
    """From the same weights as those of SAELens's that read residuals as they are."""
    shutil.copytree(general / "sae", "foreign")
    cfg = json.loads(Path("foreign/cfg.json").read_text())
    Path("foreign/cfg.json").write_text(
        json.dumps({**cfg, "normalize_activations": "none", "metadata": {"model_name": "m"}})
    )
    assert cli(*command, "init.sae=foreign").code == 0
    (run,) = run_folders(Path("multirun/foreign"))
    assert "\nnormalisation: none\n" in (run / "config.yaml").read_text()
    assert json.loads((run / "sae" / "cfg.json").read_text())["normalize_activations"] == "none"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["mse"] == metrics["mse_raw"]
    again = cli(*command, "init.sae=foreign", "normalisation=none")
    assert (again.code, "1 already done" in again.err) == (0, True)
    refused = cli(*command, "sweep=other", "init.sae=foreign", "normalisation=layer_norm")
    assert refused.code == 2
    assert "init.sae=foreign has normalisation=none, not layer_norm" in refused.err


@pytest.mark.usefixtures("without_figures")
def test_a_run_starts_from_the_sae_of_another_and_shares_the_pass_of_one_that_does_not(
    cli: Cli, small: list[str]
) -> None:
    quiet = [*small, "tracking=none"]
    assert cli(*quiet, "sweep=general").code == 0
    (general,) = run_folders(Path("multirun/general"))
    command = [*quiet, "sweep=tuned", "tokens=1024", f"init.sae=null,{general}"]
    assert cli(*command).code == 0
    runs = json.loads(Path("multirun/tuned/plan.json").read_text())["runs"]
    assert len({run["group"] for run in runs}) == 1
    assert len({run["id"] for run in runs}) == 2
    (tuned,) = (Path("multirun/tuned") / run["name"] for run in runs if "start" in run["fingerprints"])
    moved, start = load_sae(tuned).W_dec, load_sae(general).W_dec
    assert not moved.equal(start)
    assert torch.nn.functional.cosine_similarity(moved, start).min() > 0.9  # two steps
    metrics, before = (json.loads((run / "metrics.json").read_text()) for run in (tuned, general))
    assert (metrics["init_match"], metrics["new_features"]) == (1, 0)
    for name in ("explained_variance", "explained_variance_rare", "mse", "ce_delta", "l0", "alive"):
        assert metrics[f"start_{name}"] == pytest.approx(before[name], rel=1e-4)
    assert metrics["start_mse"] != metrics["mse"]
    compared = Path("multirun/tuned/analysis/fine_tuning/fine_tuning.csv").read_text()
    assert f'"fine-tuned","{general.name}","general SAE","explained_variance_rare"' in compared
    shutil.copytree(general, "elsewhere")
    _starts_from_another_library(cli, [*quiet, "sweep=foreign", "tokens=1024"], general)
    again = cli(*quiet, "sweep=tuned", "tokens=1024", "init.sae=null,elsewhere")
    assert (again.code, "2 already done" in again.err) == (0, True)
    shutil.rmtree(general)
    refused = cli(*command)
    assert refused.code != 0
    assert "no SAE in" in refused.err
