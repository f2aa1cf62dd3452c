"""Submitting and waiting, with a cluster that does as it is told."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from sae_sweep.config import Config, LauncherConfig, SaeSweepError
from sae_sweep.launch import cluster as module
from sae_sweep.launch.cluster import open_cluster, train_on_cluster
from sae_sweep.launch.jobs import Submitted, Ticket, read_group, read_tickets
from sae_sweep.launch.local import Local
from sae_sweep.plan.plan import Plan
from sae_sweep.store import hold, read_status
from sae_sweep.store.status import set_state, state


class Told:
    """Jobs end as `script` says: one entry a look."""

    word = "job"
    poll_s = 0.01
    lost_after_s = 0.05

    def __init__(self, script: Callable[[int], Mapping[str, str]]) -> None:
        self.script = script
        self.looks = 0
        self.numbers: list[int] = []
        self.refuses = ""

    def submit(self, numbers: Sequence[int]) -> list[Submitted]:
        if self.refuses:
            raise SaeSweepError(self.refuses)
        self.numbers += numbers
        return [Submitted(f"job{number}", Path(f"{number}.log")) for number in numbers]

    def ended(self, ids: Sequence[str]) -> Mapping[str, str]:
        self.looks += 1
        return self.script(self.looks)

    def close(self) -> None:
        self.numbers.append(-1)

    def leave(self, tickets: Sequence[Ticket]) -> str:
        return "left"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    cluster = Told(lambda look: {})
    monkeypatch.setattr(module, "open_cluster", lambda plan: cluster)
    return cluster


def test_results_come_from_the_runs_own_files(
    plan: Plan, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def script(look: int) -> dict[str, str]:
        if look == 2:
            set_state(plan.runs[0], "done")
        if look == 3:
            set_state(plan.runs[1], "failed", error="its loss is nan")
        return {}

    told.script = script
    assert train_on_cluster(plan) == 1
    assert told.numbers == [0, -1]
    assert read_group(plan.folder, 0) == Plan(plan.sweep, plan.folder, plan.runs)
    assert f"{plan.runs[0].name}: done (1 of 2)" in caplog.text
    assert f"{plan.runs[1].name}: its loss is nan" in caplog.text


def test_a_job_that_ends_without_a_result_is_lost(plan: Plan, told: Told) -> None:
    told.script = lambda look: {"job0": "OUT_OF_MEMORY"}
    assert train_on_cluster(plan) == 2
    for run in plan.runs:
        error = read_status(run.folder)["error"]
        assert error == "job job0 ended (OUT_OF_MEMORY) before this run: see 0.log"


def test_a_job_that_is_requeued_is_not_lost(plan: Plan, told: Told) -> None:
    def script(look: int) -> dict[str, str]:
        if look > 30:
            for run in plan.runs:
                set_state(run, "done")
        return {"job0": "PREEMPTED"} if look % 2 else {}

    told.script = script
    assert train_on_cluster(plan) == 0


def test_a_run_that_somebody_else_holds_is_not_written_to(plan: Plan, told: Told) -> None:
    def script(look: int) -> dict[str, str]:
        held.__enter__() if look == 1 else None
        return {"job0": "FAILED"}

    held = hold(plan.runs[0].folder)
    told.script = script
    assert train_on_cluster(plan) == 2
    held.__exit__(None, None, None)
    assert [state(run.folder) for run in plan.runs] == ["pending", "failed"]


def test_a_refusal_fails_the_runs_and_no_job_is_remembered(plan: Plan, told: Told) -> None:
    told.refuses = "SLURM took no job: no such partition"
    with pytest.raises(SaeSweepError, match="no such partition"):
        train_on_cluster(plan)
    assert [read_status(run.folder)["error"] for run in plan.runs] == [told.refuses] * 2
    assert read_tickets(plan.folder) == []


@pytest.mark.parametrize(
    ("gpus", "workers", "slots"),
    [
        ([], None, [None, None]),
        ([], 3, [None, None, None]),
        (["0", "1", "2"], None, ["0", "1", "2"]),
        (["4", "6"], 1, ["4"]),
        (["4", "6"], 5, ["4", "6"]),
    ],
)
def test_a_worker_has_a_gpu_to_itself(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, gpus: list[str], workers: int | None, slots: list[str | None]
) -> None:
    monkeypatch.setattr(module, "_gpus", lambda: gpus)
    config: Config = plan.config
    object.__setattr__(config, "launcher", LauncherConfig(cluster="local", workers=workers))
    local = open_cluster(plan)
    assert isinstance(local, Local)
    assert local._slots == slots
    assert local._module == "sae_sweep.launch.job"


def test_gpus_are_those_that_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert module._gpus() == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert module._gpus() == ["0", "1"]
