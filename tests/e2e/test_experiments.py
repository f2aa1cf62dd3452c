"""Every shipped experiment, composed and briefly run."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.cli.schema import conf_folder
from sae_sweep.plan.plan import Plan
from tests.conftest import Cli

RUNS = {"quickstart": 8, "paper": 73, "paper-mini": 73, "controlled": 48, "controlled-mini": 48}
MINI = {
    "owt": "library_docs",
    "tinystories": "stdlib_code",
    "redpajama": "stdlib_docs",
    "pile": "library_code",
}


def test_every_shipped_experiment_is_listed_here() -> None:
    assert {path.stem for path in (conf_folder() / "experiment").glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_every_experiment_composes_and_names_its_sweep(
    experiment_plan: Callable[[str], Plan], name: str
) -> None:
    plan = experiment_plan(name)
    assert len(plan.runs) == RUNS[name]
    assert plan.sweep == plan.config.experiment == name
    assert (conf_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()[1] == (
        f"# python -m sae_sweep experiment={name}"
    )


@pytest.mark.parametrize(("small", "large"), [("paper-mini", "paper"), ("controlled-mini", "controlled")])
def test_a_mini_experiment_has_the_cells_of_the_large_one(
    experiment_plan: Callable[[str], Plan], small: str, large: str
) -> None:
    mini, full = experiment_plan(small), experiment_plan(large)
    assert mini.config.study.datasets == MINI
    assert [run.grids for run in mini.runs] == [run.grids for run in full.runs]
    for run, twin in zip(mini.runs, full.runs, strict=True):
        config, original = run.config, twin.config
        assert config.dataset.name == MINI[original.dataset.name]
        for key in ("dictionary", "k", "layer", "seed", "numerics"):
            assert getattr(config, key) == getattr(original, key)
        if original.l0_coefficient is not None:
            assert config.l0_coefficient == pytest.approx(original.l0_coefficient * 768 / 128)
        assert (config.model.label, config.batch) == ("gpt2-pico", 256)
        assert config.tokens == mini.config.tokens < 1_000_000
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
        assert {(run.config.data_seed, run.config.tokens) for run in plan.runs} == {(0, plan.config.tokens)}
        assert plan.config.study.paper == paper


def test_a_narrowed_paper_keeps_just_the_matching_cells(planned: Callable[..., Plan]) -> None:
    plan = planned("experiment=paper-mini", "dataset=stdlib_code", "layer=8")
    counts = {name: sum(name in run.grids for run in plan.runs) for run in plan.runs for name in run.grids}
    assert counts == {"Table 3 row 2": 18, "Table 3 row 5": 2, "Table 3 row 7": 6, "Table 3 row 8": 3}
    assert len(plan.runs) == 18 + 6 + 3
    assert {(run.config.dataset.name, run.config.layer) for run in plan.runs} == {("stdlib_code", 8)}


def test_quickstart(cli: Cli, corpora_cache: Path) -> None:
    result = cli(
        "experiment=quickstart",
        f"paths.cache={corpora_cache}",
        "tokens=8192",
        "activations.buffer_tokens=4096",
        "evaluation.tokens=2048",
        "tracking.log_every=4",
    )
    assert result.code == 0, result.err
    sweep = Path("multirun/quickstart")
    runs = json.loads((sweep / "plan.json").read_text())["runs"]
    assert len(runs) == 8
    assert len({run["group"] for run in runs}) == 2
    for run in runs:
        metrics = json.loads((sweep / run["name"] / "metrics.json").read_text())
        assert metrics["trained_tokens"] == 8192
        assert metrics["explained_variance"] < 1
    with (sweep / "analysis" / "matching" / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 8 * 7 / 2
    # every run starts from a dictionary of its own: after eight steps nothing can match yet
    assert all(float(pair["ratio_a_in_b"]) < 0.05 for pair in pairs)
    with (sweep / "analysis" / "matching" / "keys.csv").open() as file:
        keys = {row["key"] for row in csv.DictReader(file)}
    assert {"dataset", "seed", "architecture"} <= keys
    assert "What moves the features" in result.out


def test_a_few_cells_of_paper_mini_are_trained_and_reported(
    cli: Cli, corpora_cache: Path, tmp_path: Path
) -> None:
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
