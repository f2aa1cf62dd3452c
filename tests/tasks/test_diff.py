"""`task=diff` on SAEs that nobody trained: what it counts, what it writes, and what it refuses."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from sae_sweep.activations import load_language_model
from sae_sweep.config import ModelConfig, TopKConfig
from sae_sweep.saes import SAE, build_sae, load_sae, save_sae
from sae_sweep.store import PlannedRun, SweepFolder, write_json
from sae_sweep.tasks import diff as diff_task
from sae_sweep.text import open_text
from tests.activations.conftest import save_gpt2
from tests.conftest import Cli
from tests.report.page.reading import data
from tests.tasks.conftest import write_untrained


def paths(runs: list[PlannedRun]) -> list[str]:
    both = ",".join(run.config.dataset.path for run in runs)  # type: ignore[attr-defined]
    return ["task=diff", "tracking=none", "dataset=files", f"dataset.path={both}", "dataset.held_out_every=2"]


def read(runs: list[PlannedRun]) -> list[str]:
    folders = [Path(run.config.dataset.path) for run in runs]  # type: ignore[attr-defined]
    return [path.read_text() for folder in folders for path in sorted(folder.iterdir())]


def detector(runs: list[PlannedRun], words: list[str]) -> SAE:
    """An SAE of which feature n fires on the nth of some tokens, and no other feature on any."""
    lm = load_language_model(runs[0].config.model, torch.device("cpu"))
    texts = lm.tokenizer.encode_batch(read(runs)[::6])
    opened = [torch.tensor([[lm.tokenizer.bos_id, *ids]]) for ids in texts]
    sae = build_sae(TopKConfig(k=4), 128, 128, seed=0, numerics="modern")
    x = sae.normalise(torch.cat([lm.residuals(ids, [2])[2][0, 1:] for ids in opened])).x
    tokens = torch.cat([ids[0, 1:] for ids in opened])
    wanted = [(tokens == lm.tokenizer.encode_batch([word])[0][0]).float() for word in words]
    fitted = torch.linalg.lstsq(torch.nn.functional.pad(x, (0, 1), value=1), torch.stack(wanted, 1)).solution
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1)
        sae.W_enc[:, : len(words)], sae.b_enc[: len(words)] = fitted[:-1], fitted[-1] - 0.5
    return sae


@pytest.mark.usefixtures("without_figures")
def test_what_differs_is_written_with_its_contexts_and_is_on_the_page(
    cli: Cli, two_texts: list[PlannedRun]
) -> None:
    """The SAE of the code knows a word of the prose and one of the code, and nothing else."""
    folder = two_texts[1].folder.sae
    save_sae(
        detector(two_texts, [" library", " return"]), folder, metadata={"provenance": {"run_id": "id-code"}}
    )
    texts = [
        f"{{dataset: [files], dataset.name: [{name}], dataset.path: [{name}], dataset.held_out_every: [2]}}"
        for name in ("prose", "code")
    ]
    words = (f"grids=[{','.join(texts)}]", "sweep=mine", "analysis.top=3", "analysis.before=2")
    result = cli("task=diff", "tracking=none", *words)
    assert result.code == 0, result.err
    folder = Path("multirun/mine/analysis/diff_prose_code")
    features = parquet.read_table(folder / "features.parquet").to_pylist()
    assert {row["run"] for row in features} == {"prose", "code"}
    differing = [row for row in features if row["documents_q"] is not None and row["documents_q"] < 0.05]
    assert len(differing) > 4  # the two texts have few words in common
    for row in differing:
        assert row["documents"] == pytest.approx(row["documents_a"] - row["documents_b"])
        assert row["documents_low"] * row["documents_high"] > 0
    contexts = parquet.read_table(folder / "contexts.parquet").to_pylist()
    assert {row["rank"] for row in contexts} == {0, 1, 2}
    assert f"{folder}/documents.png" in result.out
    (section,) = json.loads(data(Path("multirun/mine/report.html"), "core"))["sections"]
    found = {(row["feature"], row["dataset"], row["token"]) for row in contexts if row["run"] == "code"}
    assert found == {(0, "prose", " library"), (1, "code", " return")}
    overview, *rest = section["tables"]
    assert [row[2:] for row in overview["rows"] if row[0] == "code"] == [[1, 1]]
    tables = {table["title"]: table["rows"] for table in rest}
    assert len(tables) == 4
    assert len(tables["prose: features in more documents of prose"]) > 3
    assert all(row[-1] for row in tables["prose: features in more documents of prose"])  # beyond analysis.top
    known = [("prose", ["0", 100, 0], "« library»"), ("code", ["1", 0, 100], "« return»")]
    for text, cells, context in known:
        (row,) = tables[f"code: features in more documents of {text}"]
        assert (row[:3], context in row[-1]) == (cells, True)
        assert re.search(rf"^ *{cells[0]} +100 +0 .*{context}", result.out, re.MULTILINE)  # here, and there


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


def frequencies(run: PlannedRun, sae: SAE, tokens: int, seq_len: int) -> torch.Tensor:
    """Shares of the held-out tokens on which features fire, BOS counted, a sequence at a time."""
    lm = load_language_model(run.config.model, torch.device("cpu"))
    fired, total = torch.zeros(128, dtype=torch.float64), 0
    for (ids,) in map(
        lm.tokenizer.encode_batch, ([text] for text in open_text(run.config.dataset, Path()).held_out())
    ):
        for start in range(0, len(ids), seq_len - 1):
            part = torch.tensor([[lm.tokenizer.bos_id, *ids[start : start + seq_len - 1]]])
            fired += (sae.encode(lm.residuals(part, [2])[2][0]) > 0).sum(0)
            total += part.numel()
        tokens -= len(ids)
        if tokens <= 0:
            break
    return fired / total


def test_an_sae_that_is_no_run_is_compared_too(cli: Cli, two_texts: list[PlannedRun], tmp_path: Path) -> None:
    """Here BOS counts as any token, and what fills the last sequence of a document still does not."""
    folder = (two_texts[0].folder.sae).rename(tmp_path / "own")
    settings = ("packing.mask_special=false", "analysis.tokens=400", "analysis.seq_len=16")
    result = cli(
        *paths(two_texts), f"sae={folder}", "model=gpt2-pico", "layer=2", "model.dtype=float32", *settings
    )
    assert result.code == 0, result.err
    (files,) = Path("multirun/analysed/analysis").glob("diff_*")
    found = parquet.read_table(files / "features.parquet").sort_by("feature")
    assert len(found) == 128
    for run, column in zip(two_texts, ("tokens_a", "tokens_b"), strict=True):
        expected = frequencies(run, load_sae(folder), 400, 16)
        np.testing.assert_allclose(found[column], expected, atol=1e-12)


def test_a_stop_says_that_the_same_command_begins_anew(
    cli: Cli, two_texts: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff_task, "read_documents", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    result = cli(*paths(two_texts), "sweep=mine")
    assert result.code == 128 + signal.SIGTERM
    assert result.err.endswith("stopped by SIGTERM; launch the same command again: it begins anew\n")
    assert not Path("multirun/mine/analysis").exists()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["dataset.path=prose"], 2, "compares two datasets, and this command has 1"),
        (["dataset.path=prose,code,code/00.txt"], 2, "compares two datasets, and this command has 3"),
        (["dataset.path=prose,./prose"], 1, "both datasets hold the same text"),
        (["dataset.path=prose,nowhere"], 1, "nowhere"),
        (["dataset.path=prose,code", "sae=multirun/mine/none"], 1, "/none: there is no such folder"),
        (["dataset.path=prose,code/00.txt"], 1, "document, so none can be held out for evaluation"),
    ],
)
def test_what_is_wrong_is_one_line_each(
    cli: Cli, two_texts: list[PlannedRun], words: list[str], code: int, line: str
) -> None:
    result = cli("task=diff", "dataset=files", "sweep=mine", *words)
    assert result.code == code
    assert len([one for one in result.err.splitlines() if "sdpa attention" not in one]) <= 2  # SAEs
    assert line in result.err
    assert not Path("multirun/mine/analysis").exists()
