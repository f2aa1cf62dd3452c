"""Composes and briefly runs each experiment that does not need the study (tests/study has the others)."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.cli.schema import conf_folder
from sae_sweep.plan import Plan
from tests.conftest import Cli

RUNS = {
    "quickstart": 8,
    "controlled-smollm2": 6,
    "synthetic": 6,
    "faithful": 15,
    "dose_response": 15,
    "domain": 10,  # and as many from each SAE of init.sae
}


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


@pytest.mark.slow(reason="all eight runs of the shipped experiment are trained, tracked and compared")
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
    # every run starts from its own dictionary: nothing can match after eight steps
    assert all(float(pair["ratio_a_in_b"]) < 0.05 for pair in pairs)
    with (sweep / "analysis" / "matching" / "keys.csv").open() as file:
        keys = {row["key"] for row in csv.DictReader(file)}
    assert {"dataset", "seed", "architecture"} <= keys
    assert "No conclusion about " in result.out  # eight steps are too few
