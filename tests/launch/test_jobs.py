"""Frozen groups, tickets, and both clusters with fake workers and a fake SLURM."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_sweep.config import LauncherConfig, SaeSweepError, SlurmConfig, run_from_dict
from sae_sweep.launch import local as module
from sae_sweep.launch.frozen import FrozenGroup, freeze_group, read_group
from sae_sweep.launch.jobs import Stopped, Ticket, read_tickets, task_command, write_tickets
from sae_sweep.launch.local import Local
from sae_sweep.launch.slurm import Slurm, ended
from sae_sweep.plan import Plan
from sae_sweep.store import SweepFolder, prepare, state
from sae_sweep.store.partial import partial_path
from tests.slurm.cluster import wait_for
from tests.store.damage import check_reader, check_without_checksum


def test_a_frozen_group_is_read_back_as_it_was(plan: Plan) -> None:
    part = dataclasses.replace(plan, runs=plan.runs[:1])
    first, second = plan.runs
    assert freeze_group(plan, part.runs, sharers=2) == (0, (first.run_id,))
    # a file that a waiting job will read is never replaced
    assert freeze_group(plan, plan.runs) == (1, (first.run_id, second.run_id))
    assert read_group(plan.folder, 0) == (part, 2)
    assert read_group(plan.folder, 1) == (plan, 1)


def test_a_group_that_cannot_be_frozen_leaves_nothing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.folder.jobs.mkdir(parents=True)
    partial_path(plan.folder.jobs / "0.json").write_text("a killed command left this")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SaeSweepError, match=r"^no disk space left to write .*/jobs/0\.json: free some"):
            freeze_group(plan, plan.runs)
    assert list(plan.folder.jobs.iterdir()) == []
    assert freeze_group(plan, plan.runs).number == 0
    plan.folder.jobs.rename(plan.folder.root / "moved")
    plan.folder.jobs.touch()
    with pytest.raises(
        SaeSweepError, match=r"^cannot write .*/jobs/0\.json: (File exists|Not a directory); move"
    ):
        freeze_group(plan, plan.runs)


def test_a_worker_without_a_log_is_one_line(plan: Plan) -> None:
    (plan.folder.jobs / "0.log").mkdir(parents=True)
    workers = Local(plan)
    workers.submit([freeze_group(plan, plan.runs)])
    with pytest.raises(SaeSweepError, match=r"^cannot write .*/jobs/0\.log: Is a directory; move away"):
        workers.ended(["0"])


def test_a_config_survives_its_dict(plan: Plan) -> None:
    assert run_from_dict(plan.runs[0].config.as_dict()) == plan.runs[0].config


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
        ({"kind": "cloud"}, "launcher.kind=cloud: not one of inprocess, local, slurm"),
        ({"detach": True}, "launcher.detach=true needs launcher=slurm"),
        ({"workers": 0}, "launcher.workers=0: must be at least 1"),
        ({"slurm": SlurmConfig(time_min=3, signal_delay_s=120)}, "launcher.slurm.time_min=3: must be over"),
        ({"slurm": SlurmConfig(cpus=0)}, "launcher.slurm.cpus=0: must be at least 1"),
        ({"slurm": SlurmConfig(mem_gb=0)}, "launcher.slurm.mem_gb=0: must be at least 0.001"),
        ({"slurm": SlurmConfig(poll_s=0)}, "launcher.slurm.poll_s=0: must be at least 0.01"),
        ({"slurm": SlurmConfig(lost_after_s=-1)}, "launcher.slurm.lost_after_s=-1: must be at least 0"),
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


def test_jobs_that_slurm_forgot_or_ended_have_ended(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_squeue(tmp_path, "echo '5_0|RUNNING'; echo '5_1|FAILED'; echo '5_2|COMPLETING'", monkeypatch)
    assert Slurm(plan).ended(["5_0", "5_1", "5_2", "6"]) == {
        "5_1": "FAILED",
        "6": "no longer known to SLURM",
    }
    fake_squeue(tmp_path, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", monkeypatch)
    assert Slurm(plan).ended(["7"]) == {"7": "no longer known to SLURM"}


def test_a_slurm_that_does_not_answer_loses_no_job(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_squeue(tmp_path, "echo 'Unable to contact slurm controller' >&2; exit 1", monkeypatch)
    cluster = Slurm(plan)
    assert cluster.ended(["7"]) == {}
    assert cluster.ended(["7"]) == {}
    assert caplog.text.count("Unable to contact slurm controller") == 1


def test_without_slurm_the_refusal_is_one_line(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaeSweepError, match=r"SLURM took no job: .*srun"):
        Slurm(plan).submit([FrozenGroup(0, ())])
    with pytest.raises(SaeSweepError, match="cannot ask SLURM"):
        ended(["1"])


WORKER = """
import os, pathlib, signal, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
seen = [os.environ.get(name, "all") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
(folder / f"{number}.seen").write_text(" ".join(seen))
if number in ("0", "9"):
    sys.exit(3 if number == "0" else 143)
while not (folder / "go").exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def open_local(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Local]:
    """Workers that run `WORKER` instead of a job."""
    (plan.folder.root / "jobs").mkdir(parents=True)
    (plan.folder.root / "some_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(plan.folder.root))
    monkeypatch.setattr(module, "worker", SimpleNamespace(__name__="some_worker"))

    def open_with(slots: Sequence[str | None], threads: int, key: int | None = None) -> Local:
        monkeypatch.setattr(module, "_slots", lambda plan: list(slots))
        monkeypatch.setattr("torch.get_num_threads", lambda: threads)
        launcher = LauncherConfig(kind="local", threads=key)
        return Local(dataclasses.replace(plan, command=dataclasses.replace(plan.command, launcher=launcher)))

    return open_with


def numbered(*numbers: int) -> list[FrozenGroup]:
    return [FrozenGroup(number, ()) for number in numbers]


def test_workers_have_a_gpu_each_and_say_how_they_ended(
    plan: Plan, open_local: Callable[..., Local], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = plan.folder.root
    local = open_local(["4", "6"], threads=16)
    jobs = [ticket.id for ticket in local.submit(numbered(0, 1, 2))]
    assert jobs == ["0", "1", "2"]
    wait_for(lambda: local.ended(jobs) == {"0": "exit code 3"}, "the first worker's end")
    wait_for(lambda: (folder / "2.seen").exists() and (folder / "1.seen").exists(), "the others")
    assert [(folder / f"{job}.seen").read_text() for job in jobs] == ["4 all", "6 all", "4 all"]
    (folder / "go").touch()
    wait_for(lambda: len(local.ended(jobs)) == 3, "all to end")
    assert local.ended(["1"]) == {"1": "killed by signal 9"}


def test_a_worker_that_a_signal_stopped_is_not_lost(open_local: Callable[..., Local]) -> None:
    local = open_local([None], threads=2)
    local.submit(numbered(9))
    wait_for(lambda: local.ended(["9"]) == {"9": "stopped by SIGTERM"}, "its end")
    assert isinstance(local.ended(["9"])["9"], Stopped)


def test_a_worker_reads_from_a_pipe_that_ends_with_this_process(
    plan: Plan, open_local: Callable[..., Local]
) -> None:
    (plan.folder.root / "some_worker.py").write_text(
        "import pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'started').touch()\n"
        "sys.exit(4 + len(sys.stdin.read()))"
    )
    local = open_local([None], threads=2)
    local.submit(numbered(1))
    started = plan.folder.root / "started"
    wait_for(lambda: not local.ended(["1"]) and started.exists(), "a worker")
    (one,) = local._workers
    assert one.process.poll() is None
    assert one.process.stdin is not None
    one.process.stdin.close()  # as the kernel does when this process is killed
    wait_for(lambda: local.ended(["1"]) == {"1": "exit code 4"}, "its end")


def test_workers_that_are_left_are_stopped(plan: Plan, open_local: Callable[..., Local]) -> None:
    local = open_local([None], threads=2)
    local.submit(numbered(1, 2))
    seen = plan.folder.root / "1.seen"
    wait_for(lambda: not local.ended(["1"]) and seen.exists(), "a worker")
    assert "resume" in local.leave([])
    assert local.ended(["1", "2"]) == {"1": "killed by signal 15"}


@pytest.mark.parametrize(
    ("slots", "own", "key", "threads"),
    [
        (3, None, None, "3"),
        (2, None, None, "5"),
        (20, None, None, "1"),
        (3, "7", None, "10"),
        (3, "7", 4, "4"),
    ],
)
def test_workers_without_a_gpu_share_the_cores(
    plan: Plan,
    open_local: Callable[..., Local],
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
    own: str | None,
    key: int | None,
    threads: str,
) -> None:
    """With OMP_NUM_THREADS set, torch's own number (10 here) is it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    local = open_local([None] * slots, threads=10, key=key)
    local.submit(numbered(1))
    seen = plan.folder.root / "1.seen"
    wait_for(lambda: not local.ended(["1"]) and seen.exists() and seen.read_text(), "a worker")
    local.leave([])
    assert seen.read_text() == f"all {threads}"


def test_the_share_of_the_cores_does_not_depend_on_what_is_left_to_train(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_gpus", list)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    launcher = LauncherConfig(kind="local", max_group=1, workers=2)
    two = dataclasses.replace(plan, command=dataclasses.replace(plan.command, launcher=launcher))
    assert module.worker_threads(two) == 4
    one = dataclasses.replace(two, runs=two.runs[:1])
    assert module.worker_threads(one) == 8  # a smaller sweep: its only worker has all of them


def test_a_command_about_a_sweep_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "python -m sae_sweep task=status sweep=mine"
    assert task_command("status", SweepFolder(tmp_path / "multirun" / "mine")) == command
    assert (
        task_command("status", SweepFolder(tmp_path / "x" / "mine")) == f"{command} paths.output={tmp_path}/x"
    )


def test_no_damage_of_a_frozen_group_is_believed(plan: Plan) -> None:
    freeze_group(plan, plan.runs)
    check_reader(plan.folder.jobs / "0.json", lambda: read_group(plan.folder, 0), number=100)


def test_changed_values_of_a_frozen_group_are_read_or_refused(plan: Plan) -> None:
    freeze_group(plan, plan.runs[:1])
    file = plan.folder.jobs / "0.json"
    frozen = json.loads(file.read_text())
    frozen["command"] = {"fuse": True}  # the configs' own keys are tested where they are
    frozen["runs"][0]["config"] = {
        key: frozen["runs"][0]["config"][key] for key in ("architecture", "dataset")
    }
    file.write_text(json.dumps(frozen))
    check_without_checksum(file, lambda: read_group(plan.folder, 0))
    file.write_text('{"a": 1}')
    with pytest.raises(
        SaeSweepError, match=r"0\.json: a: unknown key; sweep is missing; .*; launch the sweep"
    ):
        read_group(plan.folder, 0)


def test_no_damage_of_the_tickets_is_believed(plan: Plan) -> None:
    write_tickets(plan.folder, [Ticket(0, "4711_0", "a.err", ("x", "y")), Ticket(1, "4712", "b.err", ("z",))])
    file = plan.folder.jobs / "submitted.json"
    check_reader(file, lambda: read_tickets(plan.folder) or None)  # `[]` is a list of version 0.1.0
    check_without_checksum(file, lambda: read_tickets(plan.folder))


def test_tickets_of_an_earlier_version_are_a_list_and_anything_else_is_one_line(plan: Plan) -> None:
    file = plan.folder.jobs / "submitted.json"
    file.parent.mkdir(parents=True)
    file.write_text('[{"number": 0, "id": "4711_0", "log": "a.err", "run_ids": ["x"]}]')
    assert read_tickets(plan.folder) == [Ticket(0, "4711_0", "a.err", ("x",))]
    for text in ("{}", "[1]", "[{}]", '{"jobs": 1}', '[{"number": 0, "id": "-j", "log": "", "run_ids": []}]'):
        file.write_text(text)
        with pytest.raises(
            SaeSweepError, match=r"submitted\.json: .*; remove it once no job of this sweep runs"
        ):
            read_tickets(plan.folder)


@pytest.mark.parametrize("name", ["", "config.yaml"])
def test_a_run_whose_folder_cannot_be_written_is_left_out_alone(
    plan: Plan, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    bad, good = plan.runs
    obstacle = bad.folder.root / name
    obstacle.mkdir(parents=True) if name else (obstacle.parent.mkdir(parents=True), obstacle.touch())
    assert prepare(plan.runs) == [good]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{bad.name} is left out: cannot write {bad.folder.root}")
    assert state(good.folder) == "pending"
    assert not list(plan.folder.root.rglob(".sae_sweep*"))
    with pytest.raises(SaeSweepError, match=r"^cannot write "):  # no other run goes on
        prepare([bad])
    obstacle.rmdir() if name else obstacle.unlink()
    assert prepare(plan.runs) == [bad, good]
