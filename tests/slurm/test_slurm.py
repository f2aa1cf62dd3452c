"""Sweeps as jobs of a real SLURM."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep.config import SlurmConfig
from sae_sweep.launch.slurm import why_waiting
from sae_sweep.saes import load_sae
from tests.conftest import Cli
from tests.slurm.cluster import Slurm, wait_for

pytestmark = pytest.mark.slow(
    reason="every job is a process that imports torch first, and SLURM decides when it starts"
)


def launch(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Start a command in its own process, with its output in a file."""
    with (cwd / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "sae_sweep", *words], cwd=cwd, stdout=said, stderr=said, text=True
        )


def finish(process: subprocess.Popen[str], cwd: Path) -> tuple[int, str]:
    code = process.wait(timeout=240)
    return code, (cwd / "said.txt").read_text()


def statuses(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/status.json")}


def states(sweep: Path) -> list[str]:
    return sorted(str(status["state"]) for status in statuses(sweep).values())


def tickets(sweep: Path) -> list[dict[str, Any]]:
    path = sweep / "jobs" / "submitted.json"
    return json.loads(path.read_text())["jobs"] if path.exists() else []


def trace(sweep: Path) -> str:
    """Output of the jobs, for the message of a failing test."""
    return "\n".join(path.read_text()[-2000:] for path in sweep.glob("jobs/slurm/*.err"))


def test_each_group_is_a_job_and_the_sweep_ends_with_the_comparison(
    cli: Cli, slurm: Slurm, words: list[str]
) -> None:
    result = cli("-m", *words, "data_seed=0,1", "sweep=jobs")
    sweep = Path("multirun/jobs")
    assert result.code == 0, result.err + trace(sweep)
    assert states(sweep) == ["done", "done"]
    assert len({ticket["id"] for ticket in tickets(sweep)}) == 2
    assert (sweep / "analysis" / "matching" / "pairs.csv").exists()
    assert "done (2 of 2)" in result.err
    assert "differ only in" in result.out or "more than one" in result.out
    pickles = b"".join(path.read_bytes() for path in sweep.glob("jobs/slurm/*_submitted.pkl"))
    assert b"dictionary" not in pickles  # a path and a number: configs are read as JSON


def test_a_requeued_job_goes_on_where_it_was(
    cli: Cli, slurm: Slurm, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "tokens=40_960", "model.dtype=float32"]  # which auto is in jobs without GPUs
    cut = tmp_path / "multirun" / "cut"
    process = launch([*words, "sweep=cut"], tmp_path)
    wait_for(
        lambda: any(file.stat().st_size for file in cut.glob("*/history.jsonl")),
        "the first logged point",
        lambda: trace(cut),
    )
    (ticket,) = tickets(cut)
    slurm("scancel", "--signal=USR2", ticket["id"])
    wait_for(lambda: states(cut) == ["pending"], "the job to stop", lambda: trace(cut))
    assert list(cut.glob("*/checkpoint/state.safetensors"))
    assert not list(cut.glob("*/sae"))

    def runs_again() -> bool:
        slurm("scontrol", "update", f"JobId={ticket['id']}", "StartTime=now")
        return states(cut) != ["pending"]

    wait_for(runs_again, "the job to start again", lambda: slurm("scontrol", "show", "job") + trace(cut))
    code, said = finish(process, tmp_path)
    assert code == 0, said + trace(cut)
    assert re.search(r"Restarts=1\b", slurm("scontrol", "show", "job", ticket["id"]))

    assert cli(*words, "launcher=inprocess", "sweep=whole").code == 0
    (run,) = (path.parent for path in cut.glob("*/sae"))
    (twin,) = (
        path.parent for path in (tmp_path / "multirun" / "whole").glob("*/sae")
    )  # named after its auto
    for name, weight in load_sae(run).state_dict().items():
        assert torch.equal(weight, load_sae(twin).state_dict()[name]), name
    assert (run / "history.jsonl").read_text().count('"loss"') == 16


def test_failed_runs_and_lost_jobs_are_named_and_the_others_go_on(
    slurm: Slurm, words: list[str], tmp_path: Path
) -> None:
    sweep = tmp_path / "multirun" / "mixed"
    grid = ["optimizer.lr=1e-3,1e30", "data_seed=0,1", "tokens=20_480"]
    process = launch([*words, *grid, "sweep=mixed"], tmp_path)

    def killed() -> dict[str, dict[str, Any]]:
        return {name: status for name, status in statuses(sweep).items() if "data_seed-1" in name}

    wait_for(
        lambda: [status["state"] for status in killed().values()].count("running"),
        "the second job to run",
        lambda: trace(sweep),
    )
    ticket = tickets(sweep)[1]
    slurm("scancel", "--signal=KILL", ticket["id"])
    code, said = finish(process, tmp_path)
    assert code == 1, said
    assert states(sweep) == ["done", "failed", "failed", "failed"]
    for name, status in statuses(sweep).items():
        assert name in said
        if "lr-1e+30" in name:  # diverged, unless the second job was killed before
            assert "SLURM job" not in status["error"] or name in killed()
        elif name in killed():
            assert f"SLURM job {ticket['id']} ended" in status["error"]
            assert ticket["log"] in status["error"]
        else:
            assert (sweep / name / "sae" / "sae_weights.safetensors").exists()
    assert "Traceback" not in said


def progress(cli: Cli) -> dict[str, Any]:
    """Output of `task=status` for the sweep `left`."""
    result = cli("task=status", "sweep=left", "format=json")
    assert result.code == 0, result.err
    return dict(json.loads(result.out))


def test_detached_then_waited_for_then_left(
    cli: Cli, slurm: Slurm, words: list[str], text_folder: Path, tmp_path: Path
) -> None:
    words = [*words, "sweep=left", "tokens=409_600"]  # some seconds, so that the job is there to be left
    sweep = tmp_path / "multirun" / "left"
    result = cli(*words, "launcher.detach=true")
    assert result.code == 0, result.err
    (ticket,) = tickets(sweep)
    assert "task=status sweep=left" in result.out
    assert f"scancel {ticket['id']}" in result.out
    assert not (sweep / "analysis").exists()
    assert sum(progress(cli)["counts"][state] for state in ("pending", "running", "done")) == 1
    (config,) = sweep.glob("*/config.yaml")
    config.write_text(config.read_text().replace("tokens: 409600", "tokens: 512"))  # without effect

    process = launch(words, tmp_path)  # the same command, now waiting: no second job
    wait_for(lambda: "1 in jobs that go on; 0 new jobs" in (tmp_path / "said.txt").read_text(), "the count")
    process.send_signal(signal.SIGINT)
    code, said = finish(process, tmp_path)
    assert code == 130, said
    assert "the SLURM jobs go on" in said
    assert f"scancel {ticket['id']}" in said
    assert tickets(sweep) == [ticket]

    wait_for(
        lambda: progress(cli)["counts"]["done"] == 1, "the job that was left alone", lambda: trace(sweep)
    )
    assert [run["tokens"] for run in progress(cli)["runs"]] == [409_600]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("partition", "nowhere", "invalid partition"),
        ("mem_gb", "1000000", "emory"),
        ("gpus", "8", "gres"),
        ("extra", "{constraint: a100}", "feature"),
    ],
)
def test_a_refusal_is_slurms_own_words_and_the_key_that_changes_it(
    cli: Cli, slurm: Slurm, words: list[str], key: str, value: str, why: str
) -> None:
    result = cli(*words, f"launcher.slurm.{key}={value}", "sweep=refused")
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("sae_sweep: ")]
    assert line.startswith("sae_sweep: SLURM took no job: ")
    assert re.search(why, line)
    assert f"launcher.slurm.{key} (now " in line
    assert "Traceback" not in result.err
    (status,) = statuses(Path("multirun/refused")).values()
    assert status["state"] == "failed"
    assert f"sae_sweep: {status['error']}" == line


def test_a_job_that_can_never_start_says_why_and_which_key(
    cli: Cli, slurm: Slurm, words: list[str], tmp_path: Path
) -> None:
    assert cli(*words, "launcher.slurm.cpus=500", "sweep=never", "launcher.detach=true").code == 0
    (ticket,) = tickets(Path("multirun/never"))
    said = []

    def why() -> bool:
        said.append(why_waiting([ticket["id"]], SlurmConfig(cpus=500)))
        return "launcher.slurm.cpus (now 500)" in said[-1]

    wait_for(why, "SLURM's reason", lambda: f"{said[-1]} {slurm('squeue')}", seconds=30)
    slurm("scancel", ticket["id"])


def test_a_cancelled_job_has_saved_what_it_had(cli: Cli, slurm: Slurm, words: list[str]) -> None:
    sweep = Path("multirun/cancelled")
    assert cli(*words, "tokens=10_240_000", "sweep=cancelled", "launcher.detach=true").code == 0
    wait_for(
        lambda: any(file.stat().st_size for file in sweep.glob("*/history.jsonl")),
        "the first logged point",
        lambda: trace(sweep),
    )
    (ticket,) = tickets(sweep)
    slurm("scancel", ticket["id"])
    wait_for(lambda: states(sweep) == ["pending"], "the job to stop", lambda: trace(sweep))
    assert list(sweep.glob("*/checkpoint/state.safetensors"))
    wait_for(lambda: "stopped by SIGTERM" in trace(sweep), "the job's last words", lambda: trace(sweep))
