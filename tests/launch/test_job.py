"""States of a job's runs after each way that the job can end."""

import signal
from collections.abc import Callable
from types import FrameType

import pytest

from sae_sweep import logs
from sae_sweep.config import ConfigError, SaeSweepError
from sae_sweep.launch import group
from sae_sweep.launch.frozen import freeze_group
from sae_sweep.launch.job import run_job, run_job_alone
from sae_sweep.plan import Plan
from sae_sweep.store import hold, read_status, set_state, state
from tests.launch.conftest import finish

Job = Callable[[Callable[[Plan], None]], None]


@pytest.fixture
def job(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Run a job that trains with the given function."""

    def call(training: Callable[[Plan], None]) -> None:
        monkeypatch.setattr(group, "train_runs", lambda plan, runs, stop, sharers, job: training(plan))
        run_job(plan.folder.root, freeze_group(plan, plan.runs).number)

    return call


def states(plan: Plan) -> list[str]:
    return [state(run.folder) for run in plan.runs]


def test_only_what_is_not_settled_is_trained(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    set_state(plan.runs[0], "failed", error="diverged before the job was requeued")
    trained = []
    monkeypatch.setattr(group, "train_runs", lambda plan, runs, stop, sharers, job: trained.extend(runs))
    run_job(plan.folder.root, freeze_group(plan, plan.runs).number)
    assert trained == [plan.runs[1]]


def test_an_unforeseen_error_fails_the_runs(plan: Plan, job: Job) -> None:
    def training(plan: Plan) -> None:
        finish(plan.runs[0])
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        job(training)
    assert states(plan) == ["done", "failed"]
    assert read_status(plan.runs[1].folder).error == (
        "RuntimeError: a mistake of ours (traceback in the log of its job)"
    )


def test_a_config_that_the_model_refuses_fails_the_runs(plan: Plan, job: Job) -> None:
    def training(plan: Plan) -> None:
        raise ConfigError(["layer=99", "packing.seq_len=9999"])

    job(training)
    assert states(plan) == ["failed", "failed"]
    assert read_status(plan.runs[0].folder).error == "layer=99; packing.seq_len=9999"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_job_that_is_cancelled_leaves_its_runs_pending(
    plan: Plan, job: Job, signum: signal.Signals
) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as ended:
        job(lambda plan: signal.raise_signal(signum))
    assert ended.value.code == 128 + signum
    assert states(plan) == ["pending", "pending"]
    assert signal.getsignal(signum) is before


def test_a_preempted_job_is_handed_to_who_requeues_it(plan: Plan, job: Job) -> None:
    asked = []

    def requeue(signum: int, frame: FrameType | None) -> None:
        asked.append((signum, states(plan)))

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit):
            job(lambda plan: signal.raise_signal(signal.SIGUSR2))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert asked == [(signal.SIGUSR2, ["pending", "pending"])]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_that_a_library_turned_into_an_error_fails_no_run(
    plan: Plan, job: Job, signum: signal.Signals
) -> None:
    """As transformers does in its lazy imports."""

    def training(plan: Plan) -> None:
        try:
            signal.raise_signal(signum)
        except BaseException as error:
            raise RuntimeError("cannot import the model's class") from error

    before = signal.signal(signum, signal.default_int_handler)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            job(training)
    finally:
        signal.signal(signum, before)
    assert states(plan) == ["pending", "pending"]


def test_a_run_that_another_process_trains_is_not_touched(plan: Plan, job: Job) -> None:
    with hold(plan.runs[1].folder), pytest.raises(SaeSweepError, match="is held by process"):
        job(lambda plan: pytest.fail("trained"))
    assert states(plan) == ["pending", "pending"]


def test_a_damaged_group_is_one_line_in_the_jobs_log(
    plan: Plan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "log_to_terminal", lambda: None)
    (plan.folder.jobs).mkdir(parents=True)
    (plan.folder.jobs / "0.json").write_text("{")
    with pytest.raises(SystemExit) as ended:
        run_job_alone(plan.folder.root, 0)
    assert ended.value.code == 1
    assert f"cannot read {plan.folder.jobs / '0.json'}: " in caplog.text
    assert "Traceback" not in caplog.text
