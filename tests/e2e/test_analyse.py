"""`task=analyse` on real small sweeps: its numbers are those of the evaluation, and its text is the text."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_sweep.analysis.embedding import umap_embedding
from sae_sweep.saes import load_sae
from tests.conftest import Cli

EVALUATED = 2048
_TRAINED: dict[tuple[str, ...], Path] = {}
"""Folders with a text and a sweep `x`, by the words added to train it: each is trained once per process."""

Trained = Callable[..., list[Path]]


@pytest.fixture
def trained(
    cli: Cli, small: list[str], text_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Train a sweep `x` in the test's folder, or copy it from a test that did; returns the runs' folders."""

    def call(*words: str) -> list[Path]:
        if words not in _TRAINED:
            kept = _TRAINED[words] = tmp_path_factory.mktemp("trained")
            shutil.copytree(text_folder, kept / "texts")
            ours = [word.replace(str(text_folder), str(kept / "texts")) for word in small]
            result = cli(*ours, "tracking=none", "sweep=x", f"paths.output={kept}", *words)
            assert result.code == 0, result.err
        shutil.copytree(_TRAINED[words] / "x", tmp_path / "multirun" / "x")
        return sorted((tmp_path / "multirun" / "x").glob("gpt2-pico_*"))

    return call


def table(run: Path, name: str) -> dict:
    return pq.read_table(run / "features" / f"{name}.parquet").to_pydict()


@pytest.mark.slow(reason="four SAEs are trained first")
def test_it_agrees_with_the_evaluation_and_shows_the_text(cli: Cli, trained: Trained) -> None:
    runs = trained("seed=42,49", "architecture=topk,relu", "fuse=true")
    result = cli(
        *("task=analyse", "sweep=x", f"analysis.tokens={EVALUATED}", "analysis.top=3", "analysis.before=2"),
        *("analysis.positions=both", "analysis.permutations=5", "figures=none"),
    )
    assert result.code == 0, result.err
    assert "features (1 of 4)  multirun/x/gpt2-pico_" in result.out
    assert "tokens, SAEs: 4" in result.err
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        features, positions, contexts, strings, evaluated = (
            table(run, name) for name in ("firing", "positions", "contexts", "tokens", "statistics")
        )
        assert features["density"] == evaluated["density"]
        assert features["max"] == [
            value or pytest.approx(float("nan"), nan_ok=True) for value in evaluated["max_activation"]
        ]
        unchanged = {name: column[:128] for name, column in positions.items()}
        assert set(unchanged["positions"]) == {"none"}
        assert sum(unchanged["tokens"]) == metrics["tokens"]
        for name in ("l0", "l1", "mse", "ce_sae", "ce_clean"):
            # an LM in bfloat16 rounds reconstructions, whose last bits differ between sparse and dense sums
            exact = 1e-4 if name == "ce_sae" else 1e-5
            assert mean(unchanged, name) == pytest.approx(metrics[name], rel=exact), name
        agrees_with_its_text(features, contexts, strings, metrics["alive"])
        changed = {name: column[128:256] for name, column in positions.items()}
        assert set(changed["positions"]) == {"zero"}
        assert changed["ce_clean"][5] != unchanged["ce_clean"][5]
        assert features["position_feature"] != [None] * len(features["feature"])
    exports_agree(cli, runs[0])


def exports_agree(cli: Cli, run: Path) -> None:
    """Other tools get what was analysed: Delphi every activation, Neuronpedia every context."""
    for form in ("delphi", "neuronpedia"):
        result = cli("task=export", f"format={form}", f"sae={run}", f"analysis.tokens={EVALUATED}")
        assert result.code == 0, result.err
        assert f"  {form}  multirun/x/{run.name}/export/{form}/" in result.out
    features = table(run, "firing")
    (cache,) = (run / "export/delphi/latents/blocks.2.hook_resid_pre").glob("*.safetensors")
    latents = load_file(cache)["locations"][:, 2].long()
    assert torch.bincount(latents, minlength=len(features["active"])).tolist() == features["active"]
    (source,) = (run / "export/neuronpedia/gpt2-pico").iterdir()
    lines = gzip.decompress((source / "activations/batch-0.jsonl.gz").read_bytes()).splitlines()
    assert len(lines) == len(table(run, "contexts")["feature"])


def mean(positions: dict, name: str) -> float:
    """Mean over tokens of a column by position."""
    pairs = [
        (value, n) for value, n in zip(positions[name], positions["tokens"], strict=True) if value == value
    ]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)


def agrees_with_its_text(features: dict, contexts: dict, strings: dict, alive: float) -> None:
    tops = [row for row in range(len(contexts["kind"])) if contexts["kind"][row] == "top"]
    assert len({contexts["feature"][row] for row in tops}) == alive
    assert max(contexts["rank"][row] for row in tops) == 2
    for row in tops:
        at, feature = contexts["at"][row], contexts["feature"][row]
        assert contexts["activations"][row][at] == contexts["activation"][row]
        if contexts["rank"][row] == 0:
            assert contexts["activation"][row] == features["max"][feature]
            tied = features["decile_9"][feature] == features["max"][feature]
            assert contexts["decile"][row] == 10 or tied
    shown = "".join(strings["string"][token] for token in contexts["tokens"][tops[0]])
    assert "word" in shown or "file" in shown or "of" in shown


@pytest.mark.slow(reason="SAEs of two layers are trained first, and UMAP is compiled")
@pytest.mark.usefixtures("without_figures")
def test_figures_for_a_paper_show_the_layers_side_by_side(cli: Cli, trained: Trained) -> None:
    runs, threads = trained("layer=2,3"), torch.get_num_threads()
    words = ("task=analyse", "sweep=x", "figures=paper", "analysis.tokens=2_000", "analysis.permutations=5")
    result = cli(*words, "analysis.seq_len=140", "analysis.numerics=study")
    assert result.code == 0, result.err
    (folder,) = (path for path in Path("multirun/x/analysis/features").iterdir() if path.is_dir())
    assert folder.name == "gpt2-pico_files_topk_x4_k16_s49"
    for path in folder.glob("*.png"):
        assert path.with_suffix(".svg").exists()
        assert pq.read_table(path.with_suffix(".parquet")).num_rows
    assert "  multirun/x/analysis/features/position_features.csv" in result.out
    with Path("multirun/x/analysis/features/position_features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["positions"] for row in rows] == 2 * ["none", "zero", "shuffle"]
    curve = pq.read_table(folder / "mean_by_position.parquet").to_pydict()
    assert set(curve["panel"]) == {"layer 2", "layer 3"}
    assert set(curve["positions"]) == {"none", "zero", "shuffle"}
    assert max(curve["position"]) == 139
    umap = pq.read_table(folder / "decoder_umap.parquet").to_pydict()
    drawn = np.array([umap["umap_1"], umap["umap_2"]]).T[:512]
    assert set(umap["panel"][:512]) == {"layer 3 (from 1)"}
    np.testing.assert_array_equal(drawn, umap_embedding(load_sae(runs[0]).W_dec, seed=0))
    assert torch.get_num_threads() == threads
    unshared = pq.read_table(Path("multirun/x/analysis/features/unshared_position_features.parquet"))
    assert unshared["layer"].to_pylist() == [2]


@pytest.mark.slow(reason="an SAE is trained first, and analysed four times")
def test_any_sae_can_be_analysed(cli: Cli, trained: Trained, small: list[str], text_folder: Path) -> None:
    (run,) = trained("seed=42")
    ours = ("task=analyse", "figures=none", "analysis.tokens=1_000", "analysis.permutations=5")
    assert cli(*ours, f"sae={run}").code == 0
    own = table(run, "firing")
    foreign = Path("elsewhere/blocks.2")
    shutil.copytree(run / "sae", foreign)
    cfg = json.loads((foreign / "cfg.json").read_text())
    del cfg["metadata"]["sae_sweep"]
    (foreign / "cfg.json").write_text(json.dumps(cfg))
    text = ("model=gpt2-pico", "dataset=files", f"dataset.path={text_folder}")
    assert cli(*ours, f"sae={foreign}", "layer=7", *text).code == 0
    found = pq.read_table("multirun/analysed/elsewhere_blocks.2/features/firing.parquet").to_pydict()
    assert found["active"] == own["active"]  # at layer 2, as its files say
    weights = load_file(foreign / "sae_weights.safetensors")
    save_file({**weights, "b_dec": weights["b_dec"] + 1}, foreign / "sae_weights.safetensors")
    assert cli(*ours, f"sae={foreign}", *text).code == 0
    (other,) = Path("multirun/analysed").glob("elsewhere_blocks.2_*")  # nothing is overwritten
    assert (other / "features" / "firing.parquet").exists()
    cfg["metadata"] |= {"hook_name": None, "model_name": "gpt2-small"}
    (foreign / "cfg.json").write_text(json.dumps(cfg))
    result = cli(*ours, f"sae={foreign}", "layer=7", *text)
    assert "its files do not say which residuals it reads; taken are those of layer=7" in result.err
    assert "its files say model gpt2-small, and this is gpt2-pico" in result.err
    cfg["d_in"] = 64
    (foreign / "cfg.json").write_text(json.dumps(cfg))
    result = cli(*ours, f"sae={foreign}", *text)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "elsewhere/blocks.2" in result.err
    result = cli(*ours, "sae=nowhere", *text)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "nowhere" in result.err


@pytest.mark.slow(reason="SAEs of two layers are trained first, and analysed three times")
@pytest.mark.usefixtures("without_figures")
def test_one_run_leaves_the_tables_of_its_sweep(cli: Cli, trained: Trained) -> None:
    run, _ = trained("layer=2,3")
    ours = ("task=analyse", "analysis.tokens=1_000", "analysis.permutations=5", "tracking=none")
    assert cli(*ours, "sweep=x").code == 0
    whole = Path("multirun/x/analysis/features/position_features.csv")
    before = whole.read_text()
    assert cli(*ours, f"sae={run}").code == 0
    assert whole.read_text() == before
    own = (whole.parent / run.name / whole.name).read_text().splitlines()
    assert own == before.splitlines()[:2]
    (drawn,) = (path for path in whole.parent.glob("*/losses.png") if path.parent.name != run.name)
    kept = drawn.with_name("decoder_umap.png")
    for file in (kept, drawn.with_name("losses_changed_positions.png")):
        shutil.copy(drawn, file)
    assert cli(*ours, "sweep=x", "analysis.tokens=10").code == 0  # one sequence, too few for the tables
    assert not whole.exists()
    assert not drawn.with_name("position_features.png").exists()
    assert not drawn.with_name("losses_changed_positions.png").exists()
    assert drawn.exists()
    assert kept.exists()  # shows the decoders alone


@pytest.mark.slow(reason="an SAE is trained first")
@pytest.mark.usefixtures("without_figures")
def test_an_sae_without_live_features_is_said(
    cli: Cli, trained: Trained, small: list[str], text_folder: Path
) -> None:
    (run,) = trained("seed=42")
    weights = load_file(run / "sae" / "sae_weights.safetensors")
    foreign = Path("dead")
    foreign.mkdir()
    keys = ("d_in", "d_sae", "dtype", "device")
    cfg = {key: json.loads((run / "sae" / "cfg.json").read_text())[key] for key in keys}
    (foreign / "cfg.json").write_text(json.dumps(cfg | {"architecture": "standard"}))
    dead = {**weights, "b_enc": torch.full_like(weights["b_enc"], -1e6)}
    kept = {name: dead[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    save_file(kept, foreign / "sae_weights.safetensors")
    words = ("task=analyse", "analysis.tokens=1_000", "analysis.permutations=5", "tracking=none")
    text = ("model=gpt2-pico", "dataset=files", f"dataset.path={text_folder}")
    result = cli(*words, *text, "sae=dead")
    assert result.code == 0
    assert "dead: no feature fires on this text" in result.err
    assert "nan" not in result.out
    found = pq.read_table("multirun/analysed/dead/features/firing.parquet").to_pydict()
    assert set(found["position_feature"]) == {None}
    assert set(found["active"]) == {0}


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ([], 2, "needs sweep=NAME, a folder below {here}/multirun; there is x, or sae=FOLDER"),
        (["sae=multirun/x"], 1, "{here}/multirun/x is a sweep: name one of its runs, or give sweep=x"),
        (["sae="], 2, "sae: name a folder"),
        (['sae="~nobody_at_all/x"'], 2, "~nobody_at_all is no home folder"),
        ([f"sae={'n' * 300}"], 1, "File name too long"),
    ],
)
def test_what_names_no_sae_is_one_line(
    cli: Cli, tmp_path: Path, words: list[str], code: int, why: str
) -> None:
    (tmp_path / "multirun" / "x").mkdir(parents=True)
    (tmp_path / "multirun" / "x" / "plan.json").write_text(json.dumps({"sweep": "x", "runs": []}))
    result = cli("task=analyse", *words)
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert why.format(here=tmp_path) in result.err


@pytest.mark.slow(reason="two SAEs are trained first, and the sweep is analysed twice")
def test_damaged_and_unfinished_runs_are_left_out(
    cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = trained("seed=42,49")
    monkeypatch.setattr("sae_sweep.tasks.analyse.free_bytes", lambda device: [2**25])  # one SAE at a time
    ours = ("task=analyse", "sweep=x", "analysis.tokens=1_000", "analysis.permutations=5", "figures=none")
    weights = one / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = cli(*ours)
    assert result.code == 1
    assert f"{one.name} is left out: cannot read " in result.err
    assert (other / "features" / "firing.parquet").exists()
    assert not (one / "features" / "firing.parquet").exists()
    (other / "features" / "firing.parquet").unlink()
    (other / "features" / "firing.parquet").mkdir()  # cannot be written
    result = cli(*ours)
    assert result.code == 1
    assert f"{other.name} is left out: cannot write " in result.err
    assert "Files" not in result.out
    shutil.rmtree(other)
    result = cli(*ours)
    assert result.code == 1
    assert "Files" not in result.out


def test_a_changed_text_is_refused(cli: Cli, trained: Trained) -> None:
    (run,) = trained("seed=42")
    kept = Path(json.loads((run / "sae" / "cfg.json").read_text())["metadata"]["dataset_path"])
    file, before = kept / "00.txt", (kept / "00.txt").read_text()
    try:
        file.write_text("something else\n")
        result = cli("task=analyse", "sweep=x")
    finally:
        file.write_text(before)
    assert result.code == 1
    assert "changed after" in result.err


def test_no_finished_run_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "multirun" / "x").mkdir(parents=True)
    (tmp_path / "multirun" / "x" / "plan.json").write_text(json.dumps({"sweep": "x", "runs": []}))
    result = cli("task=analyse", "sweep=x")
    assert result.code == 1
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["analysis.tokens=0"],
        ["analysis.top=1e9"],
        ["analysis.before=-1"],
        ["analysis.positions=rotate"],
        ["analysis.numerics=mine"],
        ["analysis.seq_len=1"],
        ["figures=all"],
    ],
)
def test_absurd_settings_are_refused(cli: Cli, words: list[str]) -> None:
    result = cli("task=analyse", "sweep=x", *words)
    assert result.code == 2
    assert words[0].split("=")[0] in result.err


def test_a_context_beyond_the_models_is_refused(cli: Cli, trained: Trained) -> None:
    (run,) = trained("seed=42")
    result = cli("task=analyse", "sweep=x", "analysis.seq_len=257")
    assert result.code == 1
    assert f"{run.name} is left out: analysis.seq_len=257: gpt2-pico reads at most 256 tokens" in result.err


def test_it_needs_no_more_than_the_saes_folder(cli: Cli, trained: Trained) -> None:
    (run,) = trained("seed=42")
    before = load_sae(run / "sae").W_dec.clone()
    shutil.rmtree(run / "features")
    assert cli("task=analyse", "sweep=x", "analysis.tokens=1_000", "figures=none").code == 0
    assert load_sae(run / "sae").W_dec.equal(before)
    assert {file.name for file in (run / "features").iterdir()} == {
        "firing.parquet",
        "positions.parquet",
        "contexts.parquet",
        "tokens.parquet",
    }
