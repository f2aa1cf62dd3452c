"""`task=match` on an artificial sweep with a mixed run: what it reads from the status of each run."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sae_sweep.store import planned_run, write_json
from sae_sweep.store.config_file import write_config
from sae_sweep.store.paths import SweepFolder
from sae_sweep.tracking import ComparisonSink
from tests.conftest import Cli
from tests.study.helpers import BASE, write_sweep


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """Two finished runs, of two seeds; the second went on with another attention at step 7."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **keys: None)
    folder = SweepFolder(tmp_path / "multirun" / "paper")
    names = write_sweep(folder.root, [dataclasses.replace(BASE, dictionary=4, seed=seed) for seed in (1, 2)])
    for entry in json.loads(folder.plan.read_text())["runs"]:
        write_config(folder.run(entry["name"]), planned_run(entry, folder).config)
    status = folder.run(names[1]).status
    mixed = [{"step": 7, "attention": ["sdpa", "eager"]}]
    write_json(status, {**json.loads(status.read_text()), "mixed": mixed})
    return folder


def test_a_mixed_run_marks_its_row_its_pairs_and_the_table_in_wandb(
    cli: Cli, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {}
    monkeypatch.setattr(ComparisonSink, "table", lambda self, name, *table: sent.update({name: table}))
    result = cli("task=match", "sweep=paper", "tracking=none", "device=cpu")
    assert result.code == 0, result.err
    assert [line.split()[-1] for line in result.out.splitlines()[3:5]] == ["done", "done†"]
    assert "† mixed: part of the run was trained with other numerics" in result.out
    with (sweep.matching / "pairs.csv").open(newline="") as file:
        assert [row["mixed"] for row in csv.DictReader(file)] == ["True"]
    columns, rows = sent["matching/pairs"]
    assert dict(zip(columns, rows[0], strict=True))["mixed"] is True
