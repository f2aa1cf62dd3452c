"""`task=report` if runs, or the sweep, are damaged or missing."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError, TopKConfig
from sae_sweep.plan import Request
from sae_sweep.saes import build_sae, save_sae
from sae_sweep.store import write_json
from sae_sweep.study.report import report
from tests.conftest import Cli
from tests.study.helpers import BASE, config_of, read_csv
from tests.study.study_runs import D_IN


@pytest.mark.parametrize(
    "file", ["sae/sae_weights.safetensors", "metrics.json", "features/statistics.parquet"]
)
@pytest.mark.usefixtures("without_figures")
def test_a_damaged_run_is_named_left_out_and_counted(
    sweep: Path, command: Callable[..., Request], caplog: pytest.LogCaptureFixture, file: str
) -> None:
    name = config_of(BASE).base_name()
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


@pytest.mark.parametrize("plan", [{}, [], {"runs": [{}]}, {"runs": None}])
def test_a_damaged_plan_is_one_clear_error(
    sweep: Path, command: Callable[..., Request], plan: object
) -> None:
    write_json(sweep / "plan.json", plan)
    with pytest.raises(SaeSweepError, match=r"cannot read .*plan\.json"):
        report(command())


@pytest.mark.parametrize("paper", ["..", "../elsewhere", "/etc", "-x", 7])
def test_the_sweep_that_a_plan_names_lies_beside_its_own(
    sweep: Path, command: Callable[..., Request], paper: object
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    write_json(sweep / "plan.json", {**plan, "study": {"paper": paper}})
    with pytest.raises(SaeSweepError, match=r"plan\.json: study\.paper=.*; move it away"):
        report(command())


@pytest.mark.usefixtures("without_figures")
def test_damaged_statuses_and_configs_leave_their_runs_out(
    sweep: Path, command: Callable[..., Request], caplog: pytest.LogCaptureFixture
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    plan["runs"][3]["config"] = {}
    plan["runs"][4]["config"]["architecture"]["kind"] = "nothing"
    write_json(sweep / "plan.json", plan)
    write_json(sweep / plan["runs"][5]["name"] / "status.json", [])
    assert report(command()) == 3
    assert all(f"{run['name']} is left out: " in caplog.text for run in plan["runs"][3:6])
    assert "status.json: it holds no mapping; remove it" in caplog.text


@pytest.mark.usefixtures("without_figures")
def test_runs_that_are_not_finished_are_no_failure(sweep: Path, command: Callable[..., Request]) -> None:
    name = config_of(BASE).base_name()
    write_json(sweep / name / "status.json", {"state": "running", "run_id": name})
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
    sweep: Path, command: Callable[..., Request], change: dict[str, str], words: str
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    name = config_of(BASE).base_name()
    (entry,) = (run for run in plan["runs"] if run["name"] == name)
    entry["config"]["model"].update(change)
    write_json(sweep / "plan.json", plan)
    narrow = build_sae(TopKConfig(k=4), 12, 16 * D_IN, seed=1, numerics="modern")
    save_sae(narrow, sweep / name / "sae", metadata={})
    assert report(command()) == 0
    text = (sweep / "analysis" / "tables" / "table1.md").read_text()
    assert f"- {name} is left out: {words}" in text
    assert f"no run: {BASE}" in text


def test_a_sweep_without_a_finished_run_has_a_page_that_says_so(
    sweep: Path, command: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    for status in sweep.glob("*/status.json"):
        write_json(status, {"state": "pending", "run_id": status.parent.name})
    assert report(command()) == 0
    assert (sweep / "report.html").exists()
    assert "a comparison needs two finished SAEs of this sweep, and it has 0." in capsys.readouterr().out


def test_a_sweep_is_needed(command: Callable[..., Request], tmp_path: Path) -> None:
    with pytest.raises(SaeSweepError, match="needs sweep=NAME"):
        report(command(sweep=None))
    with pytest.raises(SaeSweepError, match="no sweep there"):
        report(command(sweep="nowhere"))


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_run_exits_with_1_and_no_traceback(sweep: Path, cli: Cli) -> None:
    weights = sweep / config_of(BASE).base_name() / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = cli("task=report", "sweep=paper", "tracking=none", "device=cpu")
    assert result.code == 1
    assert weights.parent.parent.name in result.err
    assert "Traceback" not in result.err
