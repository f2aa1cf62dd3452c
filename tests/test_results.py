"""Results in hand: the package's own names, and the tables of a sweep."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest

import sae_sweep as ss
from sae_sweep.plan import Plan
from sae_sweep.saes import save_sae
from sae_sweep.store import hold, set_state, write_metrics
from tests.launch.conftest import plan
from tests.saes.helpers import architecture, fresh_sae

__all__ = ["plan"]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def sweep(plan: Plan) -> ss.Sweep:
    """Two runs that differ in the seed; the first is done, the second failed."""
    plan.save()
    first, second = plan.runs
    sae = fresh_sae(architecture("topk"), "modern")
    save_sae(sae, first.folder.sae, metadata={"provenance": {"run_id": first.run_id}})
    metrics = {"init_match": 0.02, "explained_variance": 0.7, "tokens": 2048.0}
    write_metrics(first.folder, first.run_id, metrics, {})
    set_state(first, "done", tokens=100)
    set_state(second, "failed", error="its loss is nan")
    return ss.open_sweep(plan.folder.root)


def test_runs_are_a_table_of_keys_state_and_metrics(sweep: ss.Sweep) -> None:
    runs = sweep.runs
    assert isinstance(runs, pandas.DataFrame)
    assert list(runs["name"]) == sweep.names
    assert list(runs["short"]) == [f"seed {seed}" for seed in runs["seed"]]
    assert list(runs["state"]) == ["done", "failed"]
    assert runs["error"].isna().iloc[0]
    assert runs["error"].iloc[1] == "its loss is nan"
    assert runs["explained_variance"].iloc[0] == 0.7
    assert runs["explained_variance"].isna().iloc[1]
    assert runs["evaluated_tokens"].iloc[0] == 2048
    assert (
        runs["tokens"].iloc[0]
        == json.loads((sweep.path / "plan.json").read_text())["runs"][0]["config"]["tokens"]
    )
    assert {"model", "layer", "dataset", "architecture", "k", "dictionary", "mixed"} <= set(runs.columns)
    assert "1 done, 1 failed" in repr(sweep)


def test_without_pandas_tables_are_those_of_arrow(sweep: ss.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert isinstance(sweep.runs, pyarrow.Table)


def test_a_run_that_nobody_goes_on_with_is_interrupted(sweep: ss.Sweep, plan: Plan) -> None:
    """As `task=status` says, too; a run that has begun is pending again once a stop has saved it."""
    set_state(plan.runs[1], "running")
    assert sweep.runs["state"].iloc[1] == "interrupted"
    with hold(plan.runs[1].folder):
        assert sweep.runs["state"].iloc[1] == "running"
    set_state(plan.runs[1], "pending")
    assert "1 done, 1 interrupted" in repr(sweep)
    with pytest.raises(ss.SaeSweepError, match="is interrupted: it has no SAE"):
        sweep.sae(plan.runs[1].name)


def test_a_damaged_run_is_a_row(sweep: ss.Sweep, plan: Plan) -> None:
    plan.runs[1].folder.status.write_text("{")
    assert list(sweep.runs["state"]) == ["done", "damaged"]
    assert "status.json" in sweep.runs["error"].iloc[1]


def test_an_sae_by_name_short_name_or_id(sweep: ss.Sweep, plan: Plan) -> None:
    first, second = plan.runs
    for name in (first.name, first.run_id, sweep.runs["short"].iloc[0]):
        assert sweep.sae(name).W_dec.shape == (64, 16)
    with pytest.raises(ss.SaeSweepError, match=rf"no run 'other' in .*; there is {re.escape(first.name)}, "):
        sweep.sae("other")
    with pytest.raises(ss.SaeSweepError, match=r"is failed: it has no SAE \(yet\); see .*train\.log"):
        sweep.sae(second.name)


def test_an_sae_below_the_home_folder(sweep: ss.Sweep, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sweep.path.parent))
    below = f"~/{plan.runs[0].folder.root.relative_to(sweep.path.parent)}"
    assert ss.load_sae(below).W_dec.equal(sweep.sae(plan.runs[0].name).W_dec)


def test_history_has_one_row_per_point(sweep: ss.Sweep, plan: Plan) -> None:
    lines: list[dict[str, Any]] = [
        {"tokens": 10, "time": 1.0, "loss": 3.0},
        {"tokens": 20, "time": 2.0, "loss": None},
        {"tokens": 20, "time": 2.5, "l0": 4},
        {"tokens": 20, "time": 3.0, "histogram": "h", "counts": [1], "edges": [0, 1]},
        {"tokens": 20, "time": 3.0, "summary": {"eval/l0": 4.0}},
    ]
    path = plan.runs[0].folder.history
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"tokens": 3')
    history = sweep.history(plan.runs[0].name)
    assert list(history.columns) == ["tokens", "time", "loss", "l0"]
    assert list(history["tokens"]) == [10, 20]
    assert history["l0"].iloc[1] == 4
    points = '{"tokens": 1, "loss": 2.0}\n{"tokens": 2, "loss": "x"}\n'
    for damaged in ("no record\n", "[1]\n", '{"loss": 1}\n', '{"tokens": [1]}\n', points):
        path.write_text(damaged)
        with pytest.raises(ss.SaeSweepError, match=r"cannot read .*history\.jsonl: a line is no record .*; "):
            sweep.history(plan.runs[0].name)
    assert len(sweep.history(plan.runs[1].name)) == 0


def test_matches_that_are_not_there_yet(sweep: ss.Sweep) -> None:
    with pytest.raises(ss.SaeSweepError, match=rf"pairs\.parquet.*task=match sweep={sweep.path.name}"):
        sweep.matches()


def test_a_folder_without_a_sweep_is_one_line(sweep: ss.Sweep, plan: Plan) -> None:
    above = sweep.path.parent
    with pytest.raises(ss.SaeSweepError, match=f"no sweep there.*; below it there is {sweep.path.name}$"):
        ss.open_sweep(str(above))
    with pytest.raises(ss.SaeSweepError, match="it is a run: open the folder above it"):
        ss.open_sweep(plan.runs[0].folder.root)
    for opened in (ss.open_sweep, ss.load_sae):
        with pytest.raises(ss.SaeSweepError, match=r"cannot read .*: File name too long"):
            opened("x" * 300)


def test_the_package_is_light_until_a_name_is_used() -> None:
    code = (
        "import sys, sae_sweep as ss\n"
        "assert {'open_sweep', 'load_sae', 'match', 'Sweep'} <= set(dir(ss))\n"
        "heavy = {'torch', 'pyarrow', 'pandas', 'numpy', 'wandb', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "ss.open_sweep\n"
        "assert 'torch' not in sys.modules and 'wandb' not in sys.modules\n"
        "assert not hasattr(ss, 'other')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
