"""`task=report` on whole sweeps: its tables, its answers, and the keys that change them."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.analysis import match_to_init
from sae_sweep.config import MatchingConfig
from sae_sweep.plan import Request
from sae_sweep.report.page.runs import read_runs
from sae_sweep.report.page.sections import read_sections
from sae_sweep.saes import init_seed, initial_decoder
from sae_sweep.store import SweepFolder, write_json
from sae_sweep.study.config import StudyConfig
from sae_sweep.study.finished_runs import merged
from sae_sweep.study.published import RunFacts
from sae_sweep.study.report import report
from tests.conftest import Cli
from tests.study.helpers import BASE, SCALE, STAND_INS, config_of, read_csv, write_sweep
from tests.study.study_runs import D_IN, decoder_of


def test_a_whole_sweep_fills_every_cell_of_table1(
    sweep: Path, command: Callable[..., Request], capsys: pytest.CaptureFixture[str]
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
    assert max(map(len, out.partition("Files")[0].splitlines())) <= 100
    assert re.search(r"^the study +published +17\.2% +55\.2% ", out, re.MULTILINE)
    assert "Lowest explained variance of any finished run: 0.410 (" in " ".join(out.split())
    assert "Without explained variance" not in out
    assert str(sweep / "report.html") in out
    assert str(sweep / "analysis" / "tables") in out
    text = (sweep / "analysis" / "tables" / "table1.md").read_text()
    assert "# Table 1" in text
    assert "OpenWebText is library_docs" in text


def test_the_page_has_the_tables_while_their_runs_are_in_the_sweep(
    sweep: Path, command: Callable[..., Request]
) -> None:
    assert report(command()) == 0
    found, problems = read_runs(SweepFolder(sweep)), []
    (section,) = read_sections(found, problems)
    assert section["title"] == "The study's tables"
    question, table1, table2 = section["tables"]
    assert question["rows"][0][:4] == (
        "published",
        "the study",
        pytest.approx(17.17, abs=0.1),
        pytest.approx(55.2, abs=0.1),
    )
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    assert [row[3] for row in table1["rows"]] == [
        pytest.approx(float(row["measured_percent"])) for row in rows
    ]
    assert [row[6] for row in table1["rows"]] == [
        pytest.approx(float(row["published_percent"])) for row in rows
    ]
    assert len(table2["rows"]) == len(read_csv(sweep / "analysis" / "tables" / "table2.csv"))
    assert [figure["caption"][:8] for figure in section["figures"]] == [
        "Figure 1",
        "Table 1:",
        "Table 2:",
        "Figure 1",
    ]
    assert problems == []
    write_json(sweep / found.names[0] / "status.json", {"state": "running", "run_id": found.ids[0]})
    assert read_sections(read_runs(SweepFolder(sweep)), problems) == []
    assert "section.json is of other runs: run the task that wrote it again" in problems[0]


def test_a_sweep_without_cells_has_no_tables(
    command: Callable[..., Request], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "multirun" / "small"
    write_sweep(root, [BASE])
    assert report(command(sweep="small")) == 0
    assert not (root / "analysis").exists()
    assert (root / "report.html").exists()
    out = capsys.readouterr().out
    assert "study" not in out
    assert max(map(len, out.partition("Files")[0].splitlines())) <= 100


@pytest.mark.usefixtures("without_figures")
def test_the_lowest_explained_variance_is_of_all_finished_runs(
    sweep: Path, command: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    in_no_cell = config_of(RunFacts("topk", 4, 64, "owt", 8, 42)).base_name()
    write_json(sweep / in_no_cell / "metrics.json", {"init_match": 0.02, "explained_variance": -0.5})
    for seed in (42, 49):
        unknown = config_of(RunFacts("topk", 4, 32, "owt", 8, seed)).base_name()
        write_json(sweep / unknown / "metrics.json", {"init_match": 0.02, "explained_variance": None})
    assert report(command()) == 0
    out = capsys.readouterr().out
    lowest = f"Lowest explained variance of any finished run: -0.500 ({in_no_cell}, 100,000 tokens)"
    assert lowest.split() == out[out.index("Lowest") : out.index("Without")].split()
    assert "Without explained variance: 2 of 51 finished runs" in out


def test_both_kinds_of_starts_have_tables_of_their_own_and_paper_stands_beside(
    sweep: Path, command: Callable[..., Request], tmp_path: Path
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
        "figures.md",
        "section.json",
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
def test_a_mixed_run_marks_its_cells(sweep: Path, command: Callable[..., Request]) -> None:
    name = config_of(BASE).base_name()
    status = json.loads((sweep / name / "status.json").read_text())
    write_json(sweep / name / "status.json", {**status, "mixed": [{"step": 7, "kernels": ["triton", "cpu"]}]})
    assert report(command()) == 0
    rows = read_csv(sweep / "analysis" / "tables" / "table1.csv")
    assert any(row["mixed"] == "True" for row in rows)
    for row in rows:
        assert row["mixed"] == str(name in (row["counted_run"], row["sought_in_run"]))
    mark = "‡ mixed: part of the run was trained with other numerics"
    for name in ("table1", "table2", "dataset_vs_seed"):
        assert mark in (sweep / "analysis" / "tables" / f"{name}.md").read_text()


@pytest.mark.usefixtures("without_figures")
def test_tables_of_both_kinds_of_starts_stay_apart_while_one_kind_is_unfinished(
    command: Callable[..., Request], tmp_path: Path
) -> None:
    mixed = tmp_path / "multirun" / "mixed"
    names = write_sweep(mixed, [BASE, dataclasses.replace(BASE, seed=42)], starts=(True, False))
    for name in names[2:]:
        write_json(mixed / name / "status.json", {"state": "running", "run_id": name})
    assert report(command(sweep="mixed")) == 0
    tables = mixed / "analysis" / "tables"
    assert (tables / "shared" / "table1.csv").exists()
    assert not (tables / "table1.csv").exists()
    assert not (tables / "own").exists()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("shared", [True, False])
def test_another_threshold_also_holds_for_the_match_to_the_start(
    command: Callable[..., Request], tmp_path: Path, shared: bool
) -> None:
    root = tmp_path / "multirun" / "again"
    other = dataclasses.replace(BASE, seed=42)
    names = write_sweep(root, [BASE, other], starts=(shared,))
    expected = []
    for name, facts in zip(names, (BASE, other), strict=True):
        seed = init_seed(config_of(facts, shared=shared), name)  # its id is its name here
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
    sweep: Path, command: Callable[..., Request]
) -> None:
    other = StudyConfig(datasets={"owt": "stdlib_docs", "tinystories": "library_docs"}, l0_scale=SCALE)
    assert report(command(study=other, matching=MatchingConfig(threshold=0.99))) == 0
    row = read_csv(sweep / "analysis" / "tables" / "table1.csv")[2]
    assert row["row"] == "owt-tinystories"
    assert "library_docs" in row["counted_run"]
    assert "above 0.99" in (sweep / "analysis" / "tables" / "table1.md").read_text()


@pytest.mark.usefixtures("without_figures")
def test_one_study_key_of_the_command_leaves_the_others_to_the_sweep(
    sweep: Path, command: Callable[..., Request]
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
    sweep: Path, command: Callable[..., Request], caplog: pytest.LogCaptureFixture
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    name = config_of(BASE).base_name()
    shutil.copytree(sweep / name, sweep / "longer")
    (first,) = (run for run in plan["runs"] if run["name"] == name)
    plan["runs"].append({**first, "name": "longer", "config": {**first["config"], "tokens": 200_000}})
    write_json(sweep / "plan.json", plan)
    assert report(command()) == 0
    assert f"{name} was chosen, not longer" in caplog.text


def test_from_the_command_line_with_wandb(sweep: Path, cli: Cli) -> None:
    result = cli("task=report", "sweep=paper", "device=cpu")
    assert result.code == 0, result.err
    assert "Does the dataset matter more than the seed?" in result.out
    assert "W&B failed" not in result.err
    assert len(list((sweep / "wandb").glob("offline-run-*"))) == 1
