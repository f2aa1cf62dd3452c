"""`task=diff` on SAEs that nobody trained: what it counts, what it writes, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import parquet

from sae_sweep.config import ModelConfig
from sae_sweep.store import PlannedRun, SweepFolder, write_json
from tests.activations.conftest import save_gpt2
from tests.conftest import Cli
from tests.report.page.reading import data
from tests.tasks.conftest import write_untrained


def paths(runs: list[PlannedRun]) -> list[str]:
    both = ",".join(run.config.dataset.path for run in runs)  # type: ignore[attr-defined]
    return ["task=diff", "tracking=none", "dataset=files", f"dataset.path={both}", "dataset.held_out_every=2"]


@pytest.mark.usefixtures("without_figures")
def test_what_differs_is_written_with_its_contexts_and_is_on_the_page(
    cli: Cli, two_texts: list[PlannedRun]
) -> None:
    result = cli(*paths(two_texts), "sweep=mine", "analysis.top=3", "analysis.before=2")
    assert result.code == 0, result.err
    (folder,) = Path("multirun/mine/analysis").glob("diff_*")
    features = parquet.read_table(folder / "features.parquet").to_pylist()
    assert {row["run"] for row in features} == {"prose", "code"}
    differing = [row for row in features if row["documents_q"] is not None and row["documents_q"] < 0.05]
    assert len(differing) > 4  # the two texts have few words in common
    for row in differing:
        assert row["documents"] == pytest.approx(row["documents_a"] - row["documents_b"])
        assert row["documents_low"] * row["documents_high"] > 0
    contexts = parquet.read_table(folder / "contexts.parquet").to_pylist()
    assert {row["rank"] for row in contexts} == {0, 1, 2}
    of_code = {
        row["dataset"] for row in contexts if "def area" in row["before"] + row["token"] + row["after"]
    }
    assert len(of_code) == 1
    assert f"{folder}/documents.png" in result.out
    sections = json.loads(data(Path("multirun/mine/report.html"), "core"))["sections"]
    assert [len(section["tables"]) for section in sections] == [4]


@pytest.mark.usefixtures("without_figures")
def test_saes_of_two_models_read_through_the_tokenizers_of_their_own(
    cli: Cli, two_texts: list[PlannedRun], tmp_path: Path
) -> None:
    prose = two_texts[0]
    model = ModelConfig(
        str(save_gpt2(tmp_path / "lm", n_embd=128, n_positions=128)), name="other", dtype="float32"
    )
    sweep = SweepFolder(prose.folder.root.parent)
    other = write_untrained(sweep, "other", replace(prose.config, model=model))
    write_json(sweep.plan, {"sweep": "mine", "runs": [run.record() for run in (prose, other)]})
    result = cli(*paths(two_texts), "sweep=mine", "analysis.before=8")
    assert result.code == 0, result.err
    (folder,) = Path("multirun/mine/analysis").glob("diff_*")
    contexts = parquet.read_table(folder / "contexts.parquet").to_pylist()
    lengths: dict[str, list[int]] = {"prose": [], "other": []}
    for row in contexts:
        before = row["before"].rpartition("<|endoftext|>")[2]
        assert any(before + row["token"] in part for part in read(two_texts)), row
        lengths[row["run"]].append(len(row["token"]))
    assert max(lengths["other"]) < max(lengths["prose"])  # its tokenizer has 300 tokens


def read(runs: list[PlannedRun]) -> list[str]:
    folders = [Path(run.config.dataset.path) for run in runs]  # type: ignore[attr-defined]
    return [path.read_text() for folder in folders for path in folder.iterdir()]


def test_an_sae_that_is_no_run_is_compared_too(cli: Cli, two_texts: list[PlannedRun], tmp_path: Path) -> None:
    sae = (two_texts[0].folder.sae).rename(tmp_path / "own")
    result = cli(*paths(two_texts), f"sae={sae}", "model=gpt2-pico", "layer=2", "analysis.tokens=400")
    assert result.code == 0, result.err
    (folder,) = Path("multirun/analysed/analysis").glob("diff_*")
    assert parquet.read_table(folder / "features.parquet").num_rows == 128


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset.path=prose"], "compares two datasets, and this command has 1"),
        (["dataset.path=prose,code,code/00.txt"], "compares two datasets, and this command has 3"),
        (["dataset.path=prose,./prose"], "both datasets hold the same text"),
        (["dataset.path=prose,nowhere"], "nowhere"),
        (["dataset.path=prose,code", "sae=multirun/mine/none"], "/none: there is no such folder"),
        (["dataset.path=prose,code/00.txt"], "document, so none can be held out for evaluation"),
    ],
)
def test_what_is_wrong_is_one_line_each(
    cli: Cli, two_texts: list[PlannedRun], words: list[str], line: str
) -> None:
    result = cli("task=diff", "dataset=files", "sweep=mine", *words)
    assert result.code == 1
    assert len([one for one in result.err.splitlines() if "sdpa attention" not in one]) <= 2  # SAEs
    assert line in result.err
    assert not Path("multirun/mine/analysis").exists()
