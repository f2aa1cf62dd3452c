"""`task=report` on a sweep folder that was made by hand."""

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from sae_sweep.analysis import match_to_init
from sae_sweep.analysis.study import RunFacts, published
from sae_sweep.config import (
    ARCHITECTURES,
    Config,
    EmbeddedDataset,
    InitConfig,
    MatchingConfig,
    ModelConfig,
    PathsConfig,
    SaeSweepError,
    StudyConfig,
    TopKConfig,
    TrackingConfig,
)
from sae_sweep.report.study import files as study_files
from sae_sweep.saes import build_sae, init_seed, initial_decoder, save_sae
from sae_sweep.storage import RunFolder, write_json
from sae_sweep.tasks.report import report
from sae_sweep.tasks.study_runs import merged
from tests.conftest import Cli
from tests.study_runs import D_IN, decoder_of

STAND_INS = {"owt": "library_docs", "tinystories": "stdlib_docs"}
SCALE = 6.0
BASE = RunFacts("topk", 16, 16, "owt", 8, 49)


def facts_of_table1() -> list[RunFacts]:
    return [facts for facts in published().saes if facts.layer == 8]


def config_of(facts: RunFacts, sweep: str, *, shared: bool = True) -> Config:
    jumprelu = facts.architecture == "jumprelu"
    sparsity: dict[str, Any] = (
        {"l0_coefficient": SCALE * facts.sparsity} if jumprelu else {"k": int(facts.sparsity)}
    )
    return Config(
        model=ModelConfig("bundled:gpt2-pico"),
        dataset=EmbeddedDataset(name=STAND_INS.get(facts.dataset, facts.dataset)),
        architecture=ARCHITECTURES[facts.architecture](**sparsity),
        **{"k": None, "l0_coefficient": None, "l1_coefficient": None, **sparsity},
        dictionary=facts.dictionary,
        layer=facts.layer,
        seed=facts.seed,
        tokens=100_000,
        init=InitConfig(shared=shared),
        study=StudyConfig(datasets=STAND_INS, l0_scale=SCALE),
        sweep=sweep,
    )


def write_run(folder: RunFolder, facts: RunFacts, config: Config) -> None:
    sae = build_sae(config.architecture, D_IN, facts.dictionary * D_IN, seed=1, numerics="modern")
    with torch.no_grad():
        sae.W_dec.copy_(decoder_of(facts))
    save_sae(sae, folder.sae, metadata={})
    weak = facts.seed == 42 and facts.dictionary == 8
    write_json(folder.metrics, {"init_match": 0.02, "explained_variance": 0.41 if weak else 0.7})
    folder.features.mkdir()
    table = pyarrow.table({"density": torch.full((sae.d_sae,), 0.01).double().numpy()})
    parquet.write_table(table, folder.features / "statistics.parquet")
    write_json(folder.status, {"state": "done", "tokens": config.tokens})


def write_sweep(root: Path, facts: Sequence[RunFacts], *, starts: Sequence[bool] = (True,)) -> list[str]:
    planned = []
    for shared in starts:
        for one in facts:
            config = config_of(one, root.name, shared=shared)
            name = config.base_name() + ("" if shared else "_own")
            write_run(RunFolder(root / name), one, config)
            planned.append({"name": name, "id": name, "config": config.as_dict()})
    write_json(root / "plan.json", {"sweep": root.name, "runs": planned})
    return [run["name"] for run in planned]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with every run that Table 1 needs."""
    root = tmp_path_factory.mktemp("made") / "paper"
    write_sweep(root, facts_of_table1())
    return root


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "multirun" / "paper"))


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of the time, and other tests look at the figures."""
    for name in ("table1_figure", "table2_figure", "layer_figure", "figure1"):
        monkeypatch.setattr(study_files, name, lambda *_: None)
    monkeypatch.setattr(study_files, "save", lambda _, path: path)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Config]:
    """What `task=report` is typed with."""

    def compose(**changes: Any) -> Config:
        paths = PathsConfig(output=str(tmp_path / "multirun"))
        return Config(
            **{
                "task": "report",
                "sweep": "paper",
                "paths": paths,
                "tracking": TrackingConfig("none"),
                "device": "cpu",
                **changes,
            }
        )

    return compose


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_whole_sweep_fills_every_cell_of_table1(
    sweep: Path, command: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(command()) == 0
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    assert len(rows) == 35
    assert not [row for row in rows if row["missing"]]
    jumprelu = next(row for row in rows if row["row"] == "topk-jumprelu" and row["column"] == "owt")
    assert "jumprelu" in jumprelu["counted_run"]
    assert "library_docs" in jumprelu["counted_run"]
    figures = {path.name for path in (sweep / "analysis" / "figures").iterdir()}
    assert figures == {"table1.png", "table2.png", "figure13.png", "figure1.png"}
    out = capsys.readouterr().out
    assert "# Table 1" in out
    assert "# Table 2" in out
    assert "| published       | the study" in out
    assert "Lowest explained variance of any finished run: 0.410 (gpt2-pico_L8_library_docs_topk_x8" in out
    assert "100,000 tokens)" in out
    assert "Without explained variance" not in out
    assert str(sweep / "analysis" / "tables") in out
    assert "OpenWebText is library_docs" in out


@pytest.mark.parametrize(
    "file", ["sae/sae_weights.safetensors", "metrics.json", "features/statistics.parquet"]
)
@pytest.mark.usefixtures("without_figures")
def test_a_damaged_run_is_named_left_out_and_counted(
    sweep: Path, command: Callable[..., Config], caplog: pytest.LogCaptureFixture, file: str
) -> None:
    name = config_of(BASE, "paper").base_name()
    (sweep / name / file).write_bytes(b"damaged")
    with caplog.at_level(logging.INFO):
        assert report(command()) == 1
    assert name in caplog.text
    assert Path(file).name in caplog.text
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    missing = [row for row in rows if row["missing"]]
    assert missing
    assert all(str(BASE) in row["missing"] for row in missing)
    assert len(missing) < len(rows)


@pytest.mark.usefixtures("without_figures")
def test_the_lowest_explained_variance_is_of_all_finished_runs(
    sweep: Path, command: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    in_no_cell = config_of(RunFacts("topk", 4, 64, "owt", 8, 42), "paper").base_name()
    write_json(sweep / in_no_cell / "metrics.json", {"init_match": 0.02, "explained_variance": -0.5})
    for seed in (42, 49):
        unknown = config_of(RunFacts("topk", 4, 32, "owt", 8, seed), "paper").base_name()
        write_json(sweep / unknown / "metrics.json", {"init_match": 0.02, "explained_variance": None})
    assert report(command()) == 0
    out = capsys.readouterr().out
    assert f"Lowest explained variance of any finished run: -0.500 ({in_no_cell}, 100,000 tokens)" in out
    assert "Without explained variance: 2 of 51 finished runs" in out


@pytest.mark.parametrize("plan", [{}, [], {"runs": [{}]}, {"runs": None}])
def test_a_damaged_plan_is_one_clear_error(sweep: Path, command: Callable[..., Config], plan: object) -> None:
    write_json(sweep / "plan.json", plan)
    with pytest.raises(SaeSweepError, match=r"cannot read .*plan\.json"):
        report(command())


@pytest.mark.usefixtures("without_figures")
def test_damaged_statuses_and_configs_leave_their_runs_out(
    sweep: Path, command: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    plan["runs"][3]["config"] = {}
    plan["runs"][4]["config"]["architecture"]["kind"] = "nothing"
    write_json(sweep / "plan.json", plan)
    write_json(sweep / plan["runs"][5]["name"] / "status.json", [])
    assert report(command()) == 3
    assert all(f"{run['name']} is left out: " in caplog.text for run in plan["runs"][3:6])
    assert "status.json: not the status of a run" in caplog.text


@pytest.mark.usefixtures("without_figures")
def test_runs_that_are_not_finished_are_no_failure(sweep: Path, command: Callable[..., Config]) -> None:
    name = config_of(BASE, "paper").base_name()
    write_json(sweep / name / "status.json", {"state": "running"})
    shutil.rmtree(sweep / name / "sae")
    assert report(command()) == 0
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    assert any(row["missing"] for row in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"path": "gpt2", "name": "other"}, "its model is gpt2, not gpt2-pico"), ({}, "its d_in is 12, not 24")],
)
@pytest.mark.usefixtures("without_figures")
def test_a_run_of_another_model_or_width_is_left_out_with_a_note(
    sweep: Path, command: Callable[..., Config], change: dict[str, str], words: str
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    name = config_of(BASE, "paper").base_name()
    (entry,) = (run for run in plan["runs"] if run["name"] == name)
    entry["config"]["model"].update(change)
    write_json(sweep / "plan.json", plan)
    narrow = build_sae(TopKConfig(k=4), 12, 16 * D_IN, seed=1, numerics="modern")
    save_sae(narrow, sweep / name / "sae", metadata={})
    assert report(command()) == 0
    text = (sweep / "analysis" / "tables" / "table1.md").read_text()
    assert f"- {name} is left out: {words}" in text
    assert f"no run: {BASE}" in text


def test_no_finished_run_is_one_clear_error(sweep: Path, command: Callable[..., Config]) -> None:
    for status in sweep.glob("*/status.json"):
        write_json(status, {"state": "pending"})
    with pytest.raises(SaeSweepError, match="none of its 51 runs is finished"):
        report(command())


def test_a_sweep_is_needed(command: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(SaeSweepError, match="needs sweep=NAME"):
        report(command(sweep=None))
    with pytest.raises(SaeSweepError, match="no sweep there"):
        report(command(sweep="nowhere"))


def test_both_kinds_of_starts_have_tables_of_their_own_and_paper_stands_beside(
    sweep: Path, command: Callable[..., Config], tmp_path: Path
) -> None:
    own = tmp_path / "multirun" / "controlled"
    facts = [
        RunFacts("topk", 16, 16, dataset, 8, seed) for dataset in ("owt", "tinystories") for seed in (42, 49)
    ]
    write_sweep(own, facts, starts=(True, False))
    assert report(command(sweep="controlled")) == 0
    tables = own / "analysis" / "tables"
    assert {path.name for path in tables.iterdir()} == {
        "own",
        "shared",
        "dataset_vs_seed.csv",
        "dataset_vs_seed.md",
    }
    assert (own / "analysis" / "figures" / "own" / "figure1.png").exists()
    rows = read_csv(tables / "own" / "table1.csv")
    assert any(row["counted_run"].endswith("_own") for row in rows)
    answers = read_csv(tables / "dataset_vs_seed.csv")
    assert [answer["where"] for answer in answers] == [
        "the study",
        "paper, shared starts",
        "controlled, shared starts",
        "controlled, own starts",
        "controlled, own starts",
        "controlled, shared starts",
    ]
    assert [answer["dataset_pairs"] for answer in answers] == ["5", "5", "1", "1", "2", "2"]


@pytest.mark.usefixtures("without_figures")
def test_tables_of_both_kinds_of_starts_stay_apart_while_one_kind_is_unfinished(
    command: Callable[..., Config], tmp_path: Path
) -> None:
    mixed = tmp_path / "multirun" / "mixed"
    names = write_sweep(mixed, [BASE, dataclasses.replace(BASE, seed=42)], starts=(True, False))
    for name in names[2:]:
        write_json(mixed / name / "status.json", {"state": "running"})
    assert report(command(sweep="mixed")) == 0
    tables = mixed / "analysis" / "tables"
    assert (tables / "shared" / "table1.csv").exists()
    assert not (tables / "table1.csv").exists()
    assert not (tables / "own").exists()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("shared", [True, False])
def test_another_threshold_also_holds_for_the_match_to_the_start(
    command: Callable[..., Config], tmp_path: Path, shared: bool
) -> None:
    root = tmp_path / "multirun" / "again"
    other = dataclasses.replace(BASE, seed=42)
    names = write_sweep(root, [BASE, other], starts=(shared,))
    expected = []
    for name, facts in zip(names, (BASE, other), strict=True):
        seed = init_seed(config_of(facts, "again", shared=shared), name)  # its id is its name here
        start = initial_decoder(D_IN, 16 * D_IN, seed)
        expected.append(100 * match_to_init(decoder_of(facts), start, 0.6))
    key = ("init_match_counted_percent", "init_match_sought_in_percent")
    for threshold, values in ((0.7, [2.0, 2.0]), (0.6, expected)):
        assert report(command(sweep="again", matching=MatchingConfig(threshold=threshold))) == 0
        rows = read_csv(root / "analysis" / "tables" / "table1.csv")
        (row,) = (row for row in rows if not row["missing"])
        assert [float(row[name]) for name in key] == values
    assert len(set(expected)) == 2


@pytest.mark.usefixtures("without_figures")
def test_the_threshold_and_the_study_keys_of_the_command_hold(
    sweep: Path, command: Callable[..., Config]
) -> None:
    other = StudyConfig(datasets={"owt": "stdlib_docs", "tinystories": "library_docs"}, l0_scale=SCALE)
    assert report(command(study=other, matching=MatchingConfig(threshold=0.99))) == 0
    row = read_csv(sweep / "analysis" / "tables" / "table1.csv")[2]
    assert row["row"] == "owt-tinystories"
    assert "library_docs" in row["counted_run"]
    assert "above 0.99" in (sweep / "analysis" / "tables" / "table1.md").read_text()


@pytest.mark.usefixtures("without_figures")
def test_one_study_key_of_the_command_leaves_the_others_to_the_sweep(
    sweep: Path, command: Callable[..., Config]
) -> None:
    assert report(command(study=StudyConfig(paper="elsewhere"))) == 0
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    assert not [row for row in rows if row["missing"]]
    own = StudyConfig(datasets=STAND_INS, l0_scale=SCALE, paper="mine")
    assert merged(own, StudyConfig()) == own
    assert merged(own, StudyConfig(l0_scale=2)) == dataclasses.replace(own, l0_scale=2)
    assert merged(own, StudyConfig(datasets={"owt": "owt"})).datasets == {**STAND_INS, "owt": "owt"}


@pytest.mark.usefixtures("without_figures")
def test_several_runs_for_a_cell_are_said(
    sweep: Path, command: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    name = config_of(BASE, "paper").base_name()
    shutil.copytree(sweep / name, sweep / "longer")
    (first,) = (run for run in plan["runs"] if run["name"] == name)
    plan["runs"].append({**first, "name": "longer", "config": {**first["config"], "tokens": 200_000}})
    write_json(sweep / "plan.json", plan)
    assert report(command()) == 0
    assert f"{name} was taken, not longer" in caplog.text


def test_from_the_command_line_with_wandb(sweep: Path, cli: Cli) -> None:
    result = cli("task=report", "sweep=paper", "device=cpu")
    assert result.code == 0, result.err
    assert "Does the dataset matter more than the seed?" in result.out
    assert "W&B failed" not in result.err
    assert len(list((sweep / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_run_exits_with_1_and_no_traceback(sweep: Path, cli: Cli) -> None:
    weights = sweep / config_of(BASE, "paper").base_name() / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = cli("task=report", "sweep=paper", "tracking=none", "device=cpu")
    assert result.code == 1
    assert weights.parent.parent.name in result.err
    assert "Traceback" not in result.err
