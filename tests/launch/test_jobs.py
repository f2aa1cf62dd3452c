"""Frozen groups, tickets, and the two clusters without their machinery."""

import os
from pathlib import Path

import pytest

from sae_sweep.config import (
    Config,
    FilesDataset,
    LauncherConfig,
    SaeSweepError,
    SlurmConfig,
    TopKConfig,
    config_from_dict,
)
from sae_sweep.launch.jobs import Ticket, freeze_group, read_group, read_tickets, task_command, write_tickets
from sae_sweep.launch.local import Local
from sae_sweep.launch.slurm import Slurm
from sae_sweep.launch.squeue import squeue
from sae_sweep.plan.plan import Plan, make_plan
from sae_sweep.store import SweepFolder
from tests.slurm.cluster import wait_for


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    launcher = LauncherConfig(cluster="slurm", slurm=SlurmConfig(setup=["module load x"], extra={"nice": 5}))
    parts = {"architecture": TopKConfig(), "dataset": FilesDataset(name="files", path="texts")}
    configs = [Config(**parts, seed=seed, sweep="mine", launcher=launcher) for seed in (1, 2)]
    return make_plan(configs, configs, lambda config: {"corpus": "abc"})


def test_a_frozen_group_is_read_back_as_it_was(plan: Plan) -> None:
    assert freeze_group(plan, plan.runs[:1]) == 0
    assert freeze_group(plan, plan.runs) == 1  # a file that a waiting job will read is never replaced
    assert read_group(plan.folder, 0) == Plan("mine", plan.folder, plan.runs[:1])
    assert read_group(plan.folder, 1) == plan


def test_a_config_with_slurm_survives_its_dict(plan: Plan) -> None:
    assert config_from_dict(plan.config.as_dict()) == plan.config


def test_a_missing_group_is_one_line(plan: Plan) -> None:
    with pytest.raises(SaeSweepError, match=r"cannot read .*7\.json"):
        read_group(plan.folder, 7)


def test_tickets_are_remembered(plan: Plan) -> None:
    assert read_tickets(plan.folder) == []
    tickets = [Ticket(0, "4711_0", "a.err", ("x", "y")), Ticket(1, "4711_1", "b.err", ("z",))]
    write_tickets(plan.folder, tickets)
    assert read_tickets(plan.folder) == tickets


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cluster": "cloud"}, "launcher.cluster=cloud: not one of inprocess, local, slurm"),
        ({"detach": True}, "launcher.detach=true needs launcher.cluster=slurm"),
        ({"workers": 0}, "launcher.workers=0: must be at least 1"),
        ({"slurm": SlurmConfig(time_min=3, signal_delay_s=120)}, "launcher.slurm.time_min=3: must be over"),
        ({"slurm": SlurmConfig(cpus=0)}, "launcher.slurm.cpus=0: must be at least 1"),
        ({"slurm": SlurmConfig(mem_gb=0)}, "launcher.slurm.mem_gb=0: must be above 0"),
        ({"slurm": SlurmConfig(poll_s=0)}, "launcher.slurm.poll_s=0: must be above 0"),
        ({"slurm": SlurmConfig(lost_after_s=-1)}, "launcher.slurm.lost_after_s=-1: must be 0 or more"),
    ],
)
def test_launchers_that_cannot_work_are_refused(keys: dict[str, object], message: str) -> None:
    problems = LauncherConfig(**keys).problems()  # type: ignore[arg-type]
    assert any(message in problem for problem in problems), problems


def fake_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def slurm(folder: Path) -> Slurm:
    return Slurm(SlurmConfig(), SweepFolder(folder), "mine", lambda folder, number: None)


def test_jobs_that_slurm_forgot_or_ended_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_squeue(tmp_path, "echo '5_0|RUNNING'; echo '5_1|FAILED'; echo '5_2|COMPLETING'", monkeypatch)
    assert squeue(["5_0"]) == {"5_0": "RUNNING", "5_1": "FAILED", "5_2": "COMPLETING"}
    assert slurm(tmp_path).ended(["5_0", "5_1", "5_2", "6"]) == {
        "5_1": "FAILED",
        "6": "no longer known to SLURM",
    }
    fake_squeue(tmp_path, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", monkeypatch)
    assert slurm(tmp_path).ended(["7"]) == {"7": "no longer known to SLURM"}


def test_a_slurm_that_does_not_answer_loses_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_squeue(tmp_path, "echo 'Unable to contact slurm controller' >&2; exit 1", monkeypatch)
    cluster = slurm(tmp_path)
    assert cluster.ended(["7"]) == {}
    assert cluster.ended(["7"]) == {}
    assert caplog.text.count("Unable to contact slurm controller") == 1


def test_without_slurm_the_refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaeSweepError, match=r"SLURM took no job: .*srun"):
        slurm(tmp_path).submit([0])
    with pytest.raises(SaeSweepError, match="cannot ask SLURM"):
        squeue(["1"])


WORKER = """
import os, pathlib, signal, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
seen = [os.environ.get(name, "all") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
(folder / f"{number}.seen").write_text(" ".join(seen))
if number == "0":
    sys.exit(3)
while not (folder / "go").exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_have_a_gpu_each_and_say_how_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    local = Local(SweepFolder(tmp_path), "some_worker", ["4", "6"], threads=16)
    jobs = [job.id for job in local.submit([0, 1, 2])]
    assert jobs == ["0", "1", "2"]
    wait_for(lambda: local.ended(jobs) == {"0": "exit code 3"}, "the first worker's end")
    wait_for(lambda: (tmp_path / "2.seen").exists() and (tmp_path / "1.seen").exists(), "the others")
    assert [(tmp_path / f"{job}.seen").read_text() for job in jobs] == ["4 all", "6 all", "4 all"]
    (tmp_path / "go").touch()
    wait_for(lambda: len(local.ended(jobs)) == 3, "all to end")
    assert local.ended(["1"]) == {"1": "killed by signal 9"}


def test_workers_that_are_left_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    local = Local(SweepFolder(tmp_path), "some_worker", [None], threads=2)
    local.submit([1, 2])
    wait_for(lambda: not local.ended(["1"]) and (tmp_path / "1.seen").exists(), "a worker")
    assert "resume" in local.leave([])
    assert local.ended(["1", "2"]) == {"1": "killed by signal 15"}


@pytest.mark.parametrize(("jobs", "own", "seen"), [(2, None, "5"), (9, None, "3"), (2, "7", "7")])
def test_workers_without_a_gpu_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, own: str | None, seen: str
) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    local = Local(SweepFolder(tmp_path), "some_worker", [None] * 3, threads=10)
    local.submit(list(range(1, jobs + 1)))
    told = tmp_path / "1.seen"
    wait_for(lambda: not local.ended(["1"]) and told.exists() and told.read_text(), "a worker")
    local.leave([])
    assert told.read_text() == f"all {seen}"


def test_a_command_about_a_sweep_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "python -m sae_sweep task=status sweep=mine"
    assert task_command("status", SweepFolder(tmp_path / "multirun" / "mine")) == command
    assert (
        task_command("status", SweepFolder(tmp_path / "x" / "mine")) == f"{command} paths.output={tmp_path}/x"
    )
