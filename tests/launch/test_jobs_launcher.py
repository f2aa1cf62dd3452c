"""Submitting jobs and waiting for them, on a scripted cluster."""

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.launch import local
from sae_sweep.launch.frozen import FrozenGroup, read_group
from sae_sweep.launch.jobs import Jobs, Stopped, Ticket, read_tickets
from sae_sweep.plan import Plan
from sae_sweep.signals import Interrupted, StopRequest, stop_signals
from sae_sweep.store import hold, read_status, report_failed, set_state, state, unfinished
from tests.launch.conftest import finish


class ScriptedCluster:
    """A cluster whose jobs end as `script` returns for each poll."""

    word = "job"
    poll_s = 0.01
    lost_after_s = 0.05
    sharers = 3

    def __init__(self, script: Callable[[int], Mapping[str, str]]) -> None:
        self.script = script
        self.looks = 0
        self.numbers: list[int] = []
        self.refuses = ""

    def active(self) -> list[Ticket]:
        return []

    def submit(self, groups: Sequence[FrozenGroup]) -> list[Ticket]:
        if self.refuses:
            raise SaeSweepError(self.refuses)
        self.numbers += [group.number for group in groups]
        return [Ticket(number, f"job{number}", f"{number}.log", ids) for number, ids in groups]

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        self.looks += 1
        return self.script(self.looks)

    def why_waiting(self, ids: Sequence[str]) -> str:
        return ""

    def close(self) -> None:
        self.numbers.append(-1)

    def leave(self, tickets: Sequence[Ticket]) -> str:
        return "left"


@pytest.fixture
def cluster() -> ScriptedCluster:
    return ScriptedCluster(lambda look: {})


def train(plan: Plan, cluster: ScriptedCluster) -> int:
    """Train the plan with jobs on the cluster; returns how many runs are not done."""
    assert Jobs(lambda plan: cluster).train(plan, StopRequest())
    return report_failed(plan.runs) + len(unfinished(plan.runs))


def test_results_come_from_the_runs_own_files(
    plan: Plan, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def script(look: int) -> dict[str, str]:
        if look == 2:
            finish(plan.runs[0])
        if look == 3:
            set_state(plan.runs[1], "failed", error="its loss is nan")
        return {}

    cluster.script = script
    assert train(plan, cluster) == 1
    assert cluster.numbers == [0, -1]
    assert read_group(plan.folder, 0) == (plan, 3)
    assert f"{plan.runs[0].name}: done (1 of 2)" in caplog.text
    assert f"{plan.runs[1].name}: its loss is nan" in caplog.text


def test_a_job_that_ends_without_a_result_is_lost_which_is_said_once(
    plan: Plan, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.script = lambda look: {"job0": "OUT_OF_MEMORY"}
    assert train(plan, cluster) == 2
    why = "job job0 ended (OUT_OF_MEMORY) before this run: see 0.log"
    assert [read_status(run.folder).error for run in plan.runs] == [why, why]
    assert caplog.text.count(why) == 1
    assert f"{plan.runs[0].name}, {plan.runs[1].name}: {why}" in caplog.text


def test_a_job_that_a_signal_stopped_is_not_lost(
    plan: Plan, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.script = lambda look: {"job0": Stopped("stopped by SIGTERM")}
    assert train(plan, cluster) == 2
    assert [state(run.folder) for run in plan.runs] == ["pending", "pending"]
    line = (
        "job job0 was stopped by SIGTERM and its runs are saved: launch the same command again to resume them"
    )
    assert caplog.messages.count(line) == 1


def test_a_job_that_is_requeued_is_not_lost(plan: Plan, cluster: ScriptedCluster) -> None:
    def script(look: int) -> dict[str, str]:
        if look > 30:
            for run in plan.runs:
                finish(run)
        return {"job0": "PREEMPTED"} if look % 2 else {}

    cluster.script = script
    assert train(plan, cluster) == 0


def test_a_run_that_somebody_else_holds_is_not_written_to(plan: Plan, cluster: ScriptedCluster) -> None:
    def script(look: int) -> dict[str, str]:
        held.__enter__() if look == 1 else None
        return {"job0": "FAILED"}

    held = hold(plan.runs[0].folder)
    cluster.script = script
    assert train(plan, cluster) == 2
    held.__exit__(None, None, None)
    assert [state(run.folder) for run in plan.runs] == ["pending", "failed"]


def test_a_refusal_fails_the_runs_and_no_job_is_remembered(plan: Plan, cluster: ScriptedCluster) -> None:
    cluster.refuses = "SLURM took no job: no such partition"
    with pytest.raises(SaeSweepError, match="no such partition"):
        train(plan, cluster)
    assert [read_status(run.folder).error for run in plan.runs] == [cluster.refuses] * 2
    assert read_tickets(plan.folder) == []


def test_a_stop_while_jobs_are_submitted_leaves_them_with_their_tickets(
    plan: Plan, cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Ticket] = []

    def submit(groups: Sequence[FrozenGroup]) -> list[Ticket]:
        signal.raise_signal(signal.SIGINT)
        return [Ticket(number, f"job{number}", f"{number}.log", ids) for number, ids in groups]

    def leave(tickets: Sequence[Ticket]) -> str:
        left.extend(tickets)
        return "the jobs go on"

    monkeypatch.setattr(cluster, "submit", submit)
    monkeypatch.setattr(cluster, "leave", leave)
    with pytest.raises(Interrupted, match="SIGINT; the jobs go on"), stop_signals() as stop:
        Jobs(lambda plan: cluster).train(plan, stop)
    assert [ticket.id for ticket in left] == ["job0"]
    assert [state(run.folder) for run in plan.runs] == ["pending", "pending"]


@pytest.mark.parametrize(
    ("gpus", "workers", "slots"),
    [
        ([], None, [None, None]),
        ([], 3, [None, None]),  # no more workers than groups
        (["0", "1"], None, ["0", "1"]),
        (["4", "6"], 1, ["4"]),
        (["4", "6"], 5, ["4", "6"]),
    ],
)
def test_a_worker_has_a_gpu_to_itself(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, gpus: list[str], workers: int | None, slots: list[str | None]
) -> None:
    monkeypatch.setattr(local, "_gpus", lambda: gpus)
    launcher = dataclasses.replace(plan.command.launcher, workers=workers, max_group=1)
    command = dataclasses.replace(plan.command, launcher=launcher)
    assert local.Local(dataclasses.replace(plan, command=command))._slots == slots


def test_gpus_are_those_that_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert local._gpus() == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local._gpus() == ["0", "1"]
