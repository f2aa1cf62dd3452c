"""The experiments that reproduce the study: the cells they train, and a few of them trained and reported."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.cli.schema import conf_folder
from sae_sweep.plan import Plan
from sae_sweep.store import PlannedRun
from sae_sweep.study.config import StudyCommand
from sae_sweep.study.published import RunFacts, published
from tests.conftest import Cli
from tests.e2e.test_experiments import RUNS as OTHERS

RUNS = {"paper": 73, "paper-mini": 73, "controlled": 48, "controlled-mini": 48}
TABLE_3 = {"row 1": 18, "row 2": 18, "row 3": 1, "row 4": 1, "row 5": 24, "row 6": 3, "row 7": 6, "row 8": 3}
MINI = {
    "owt": "library_docs",
    "tinystories": "stdlib_code",
    "redpajama": "stdlib_docs",
    "pile": "library_code",
}


def test_every_shipped_experiment_is_tested_here_or_in_e2e() -> None:
    shipped = {path.stem for path in (conf_folder() / "experiment").glob("*.yaml")}
    assert shipped == {*RUNS, *OTHERS}


@pytest.mark.parametrize("name", RUNS)
def test_every_experiment_composes_and_names_its_sweep(
    experiment_plan: Callable[[str], Plan], name: str
) -> None:
    plan = experiment_plan(name)
    assert len(plan.runs) == RUNS[name]
    assert plan.sweep == plan.command.experiment == name
    assert (conf_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()[1] == (
        f"# python -m sae_sweep experiment={name}"
    )


@pytest.mark.parametrize("name", ["paper", "paper-mini"])
def test_the_paper_has_the_cells_of_the_studys_table(
    experiment_plan: Callable[[str], Plan], name: str
) -> None:
    runs = experiment_plan(name).runs
    counts = {row: sum(f"Table 3 {row}" in run.grids for run in runs) for row in TABLE_3}
    assert counts == TABLE_3
    assert sum(counts.values()) == 74
    assert sum(run.grids != ("Table 1 (inferred)",) for run in runs) == 72
    assert len(runs) == 73


def facts(run: PlannedRun) -> RunFacts:
    """A run in the study's terms."""
    config = run.config
    (key,) = config.architecture.uses
    return RunFacts(
        architecture=config.architecture.kind,
        dictionary=config.dictionary,
        sparsity=getattr(config.architecture, key),
        dataset=config.dataset.name,
        layer=config.layer,
        seed=config.seed,
    )


def test_the_papers_runs_are_the_saes_of_the_study_row_by_row(
    experiment_plan: Callable[[str], Plan],
) -> None:
    plan, study = experiment_plan("paper"), published()
    listed = dict(zip(TABLE_3, study.table3, strict=True)) | {"inferred": study.inferred}
    for row, saes in listed.items():
        grid = "Table 1 (inferred)" if row == "inferred" else f"Table 3 {row}"
        of_grid = [facts(run) for run in plan.runs if grid in run.grids]
        assert len(of_grid) == len(set(saes))
        assert set(of_grid) == set(saes)
    assert {facts(run) for run in plan.runs} == set(study.saes)
    assert len(study.saes) == len(plan.runs) == 72 + 1


def test_the_paper_reads_each_text_once(experiment_plan: Callable[[str], Plan]) -> None:
    groups = experiment_plan("paper").groups()
    texts = [{run.config.dataset.name for run in group} for group in groups]
    assert sorted(texts, key=min) == [{"owt"}, {"pile"}, {"redpajama"}, {"tinystories"}]


@pytest.mark.parametrize(("small", "large"), [("paper-mini", "paper"), ("controlled-mini", "controlled")])
def test_a_mini_experiment_has_the_cells_of_the_large_one(
    experiment_plan: Callable[[str], Plan], small: str, large: str
) -> None:
    mini, full = experiment_plan(small), experiment_plan(large)
    assert isinstance(mini.command, StudyCommand)
    assert mini.command.study.datasets == MINI
    assert [run.grids for run in mini.runs] == [run.grids for run in full.runs]
    for run, twin in zip(mini.runs, full.runs, strict=True):
        config, original = run.config, twin.config
        assert config.dataset.name == MINI[original.dataset.name]
        for key in ("dictionary", "layer", "seed", "numerics"):
            assert getattr(config, key) == getattr(original, key)
        (key,) = original.architecture.uses
        scale = 768 / 128 if key == "l0_coefficient" else 1
        sparsity = scale * getattr(original.architecture, key)
        assert getattr(config.architecture, key) == pytest.approx(sparsity)
        assert (config.model.label, config.batch) == ("gpt2-pico", 256)
        assert config.tokens == mini.runs[0].config.tokens < 1_000_000
        assert (original.model.label, original.tokens, original.batch) == ("gpt2-small", 100_000_000, 4096)


def test_the_papers_are_the_studys_trainer_and_the_controlled_ones_are_not(
    experiment_plan: Callable[[str], Plan],
) -> None:
    assert {run.config.numerics for run in experiment_plan("paper").runs} == {"study"}
    assert {run.config.init.shared for run in experiment_plan("paper").runs} == {True}
    assert {run.config.init.shared for run in experiment_plan("paper-mini").runs} == {False}
    for name, paper in (("controlled", "paper"), ("controlled-mini", "paper-mini")):
        plan = experiment_plan(name)
        assert {run.config.numerics for run in plan.runs} == {"modern"}
        assert sum(run.config.init.shared for run in plan.runs) == 24
        assert {(run.config.data_seed, run.config.tokens) for run in plan.runs} == {
            (0, plan.runs[0].config.tokens)
        }
        assert isinstance(plan.command, StudyCommand)
        assert plan.command.study.paper == paper


def test_a_narrowed_paper_keeps_just_the_matching_cells(planned: Callable[..., Plan]) -> None:
    plan = planned("experiment=paper-mini", "dataset=stdlib_code", "layer=8")
    counts = {name: sum(name in run.grids for run in plan.runs) for run in plan.runs for name in run.grids}
    assert counts == {"Table 3 row 2": 18, "Table 3 row 5": 2, "Table 3 row 7": 6, "Table 3 row 8": 3}
    assert len(plan.runs) == 18 + 6 + 3
    assert {(run.config.dataset.name, run.config.layer) for run in plan.runs} == {("stdlib_code", 8)}


@pytest.mark.slow(reason="cells of the shipped experiment are trained and reported")
def test_a_few_cells_of_paper_mini_are_trained_and_reported(
    cli: Cli, corpora_cache: Path, tmp_path: Path
) -> None:
    """About 10 s: packs the real standard library, trains two SAEs and reports them."""
    words = [
        *("experiment=paper-mini", "dataset=stdlib_code", "layer=8", "dictionary=4", "k=16"),
        *("tokens=4_096", "evaluation.tokens=1_024", "activations.buffer_tokens=4_096", "tracking=none"),
        f"paths.cache={corpora_cache}",
    ]
    trained = cli(*words)
    assert trained.code == 0, trained.err
    reported = cli("task=report", "sweep=paper-mini", "tracking=none")
    assert reported.code == 0, reported.err
    with (tmp_path / "multirun/paper-mini/analysis/tables/table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["measured_percent"]]
    assert len(rows) == 35
    assert [(row["block"], row["n"]) for row in measured] == [("seed_42_49", "512")]
    assert "Lowest explained variance" in reported.out
