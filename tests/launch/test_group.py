"""Borders of groups and of runs before their training: who fails, who goes on, who is told."""

import dataclasses
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_sweep import logs
from sae_sweep.config import (
    CommandConfig,
    ConfigError,
    FilesDataset,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.launch import group
from sae_sweep.launch.group import train_runs
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.signals import Interrupted, StopRequest, stop_signals
from sae_sweep.store import PlannedRun, read_status, set_state, state
from tests.launch.conftest import finish
from tests.text.helpers import ByteTokenizer, ListText

OPEN = group._Shared.open

MODEL = SimpleNamespace(device=None, d_model=64, sizes=None)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two groups of two runs; their model and text are never opened."""
    monkeypatch.chdir(tmp_path)
    dataset = FilesDataset(name="files", path="texts")
    configs = [
        RunConfig(architecture=TopKConfig(), dataset=dataset, seed=seed, data_seed=data_seed)
        for data_seed in (0, 1)
        for seed in (1, 2)
    ]
    wanted = [WantedRun(config, configs[0]) for config in configs]
    made = make_plan(Request(CommandConfig(sweep="mine"), wanted), lambda config: {"corpus": "abc"})
    assert [len(runs) for runs in made.groups()] == [2, 2]
    for run in made.runs:
        run.folder.root.mkdir(parents=True)
    return made


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    with suppress(Interrupted), stop_signals() as request:
        yield request


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text, no model, and training that ends at once with every run done."""

    def train(shared: Any, runs: list[PlannedRun]) -> None:
        for run in runs:
            finish(run)

    monkeypatch.setattr(group, "open_text", lambda dataset, cache: None)
    monkeypatch.setattr(
        group,
        "load_language_model",
        lambda model, device: SimpleNamespace(**vars(MODEL), check=lambda *_: None),
    )
    monkeypatch.setattr(group, "refuse_other_content", lambda *_: None)
    monkeypatch.setattr(group, "resolve", lambda *_: None)
    monkeypatch.setattr(group, "conditions", lambda *_: SimpleNamespace())
    monkeypatch.setattr(group, "free_bytes", lambda *_: [10**12])
    monkeypatch.setattr(group, "refuse_too_large", lambda *_: None)
    monkeypatch.setattr(group._Shared, "open", lambda *_: group._Shared(*[None] * 6))
    monkeypatch.setattr(group._Shared, "train", train)


def states(plan: Plan) -> list[str]:
    return [state(run.folder) for run in plan.runs]


def first_time(raises: BaseException) -> Callable[..., Any]:
    """A function that fails at its first call."""
    left = [raises]

    def call(*_: Any) -> Any:
        if left:
            raise left.pop()
        return None

    return call


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SaeSweepError("no such text"), "no such text"),
        (ConfigError(["layer=99", "packing.seq_len=9999"]), "layer=99; packing.seq_len=9999"),
        (
            IndexError("list index out of range"),
            "IndexError: list index out of range (traceback in train.log)",
        ),
        (MemoryError("std::bad_alloc"), "memory ran out (std::bad_alloc): take a machine with more memory"),
    ],
)
def test_a_fault_of_what_a_group_shares_fails_that_group_alone(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setattr(group, "open_text", first_time(error))
    train_runs(plan, plan.runs, stop)
    assert states(plan) == ["failed", "failed", "done", "done"]
    for run in plan.runs[:2]:
        assert read_status(run.folder).error.startswith(line)
        assert "Traceback" in run.folder.log.read_text() or isinstance(error, SaeSweepError)
    assert not plan.runs[2].folder.log.exists()


def test_a_device_that_fails_leaves_the_groups_that_follow_to_the_next_launch(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever they would compute in this process would fail, or be wrong."""
    error = RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported")
    monkeypatch.setattr(group, "open_text", first_time(error))
    train_runs(plan, plan.runs, stop)
    assert states(plan) == ["failed", "failed", "pending", "pending"]
    assert read_status(plan.runs[0].folder).error == (
        "the device failed (CUDA error: unspecified launch failure): "
        "the same command goes on from the last checkpoints"
    )
    assert "the groups that follow are left to the same command" in caplog.text


def test_the_terminal_shows_no_traceback(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(group, "open_text", first_time(IndexError("list index out of range")))
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        logs.log_to_terminal()
        train_runs(plan, plan.runs, stop)
    finally:
        root.handlers[:] = handlers
    shown = capsys.readouterr().err
    assert "IndexError: list index out of range (traceback in train.log)" in shown
    assert len(shown.splitlines()) == 1


def test_a_layer_that_the_model_lacks_fails_its_runs_alone(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def check(layers: list[int], seq_len: int) -> None:
        asked.extend(layers)
        if len(asked) == 1:
            raise ConfigError(["layer=8: the model has layers 0 to 5"])

    monkeypatch.setattr(group, "load_language_model", lambda *_: SimpleNamespace(**vars(MODEL), check=check))
    train_runs(plan, plan.runs, stop)
    assert states(plan) == ["failed", "done", "done", "done"]
    assert read_status(plan.runs[0].folder).error == "layer=8: the model has layers 0 to 5"


def test_a_run_that_memory_cannot_hold_fails_before_a_cache_is_filled(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []

    def fill(_command: Any, runs: Sequence[PlannedRun], *_: Any) -> group._Shared:
        filled.extend(run.name for run in runs)
        return group._Shared(*[None] * 6)

    def refuse(config: RunConfig, *_: Any) -> None:
        if config == plan.runs[0].config:
            raise SaeSweepError("it needs at least 9 GiB of memory")

    monkeypatch.setattr(group._Shared, "open", fill)
    monkeypatch.setattr(group, "refuse_too_large", refuse)
    train_runs(plan, plan.runs, stop)
    assert states(plan) == ["failed", "done", "done", "done"]
    assert filled == [run.name for run in plan.runs[1:]]


def test_each_run_is_accepted_under_its_own_backend(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, backend=backend))
        for run, backend in zip(plan.runs[:2], ("triton", "reference"), strict=True)
    ]

    def resolve(_lm: Any, config: RunConfig, _cache: Path) -> str:
        if config.backend == "triton":
            raise SaeSweepError("backend=triton: no GPU here")
        return config.backend

    seen: list[str] = []

    def conditions(_run: PlannedRun, here: str, *_: Any) -> Any:
        seen.append(here)
        return SimpleNamespace()

    monkeypatch.setattr(group, "resolve", resolve)
    monkeypatch.setattr(group, "conditions", conditions)
    train_runs(dataclasses.replace(plan, runs=tuple(runs)), runs, stop)
    assert seen == ["reference"]
    assert [state(run.folder) for run in runs] == ["failed", "done"]


def test_a_model_is_loaded_again_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def load(_model: Any, device: str) -> str:
        devices.append(device)
        return device

    monkeypatch.setattr(group, "pick_device", lambda name: name)
    monkeypatch.setattr(group, "load_language_model", load)
    models: Any = group.Models()
    config = RunConfig(architecture=TopKConfig(), dataset=FilesDataset(path="texts"), device="cpu")
    assert [models.get(config) for _ in range(2)] == ["cpu", "cpu"]
    assert models.get(dataclasses.replace(config, device="cuda")) == "cuda"
    assert devices == ["cpu", "cuda"]


def test_a_log_that_cannot_be_opened_ends_nothing(plan: Plan, stop: StopRequest) -> None:
    plan.runs[1].folder.log.mkdir(parents=True)
    train_runs(plan, plan.runs, stop)
    assert states(plan) == ["done"] * 4


def test_a_status_that_cannot_be_written_does_not_keep_the_others_from_theirs(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group, "open_text", first_time(SaeSweepError("no such text")))
    plan.runs[0].folder.status.mkdir(parents=True)  # a folder where a file belongs
    train_runs(plan, plan.runs[:2], stop)
    assert read_status(plan.runs[1].folder).state == "failed"
    assert f"{plan.runs[0].name}: cannot read {plan.runs[0].folder.status}" in caplog.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("swallow", ["", "raise", "return"])
def test_a_stop_while_the_model_loads_is_a_stop_whatever_a_library_makes_of_it(
    plan: Plan, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, swallow: str
) -> None:
    def load(*_: Any) -> Any:
        try:
            signal.raise_signal(signum)
        except BaseException as error:
            if not swallow:
                raise
            if swallow == "raise":
                raise SaeSweepError("cannot load the model") from error
        return SimpleNamespace(check=lambda *_: pytest.fail("it went on"))

    monkeypatch.setattr(group, "load_language_model", load)
    for run in plan.runs:
        set_state(run, "pending")
    with pytest.raises(Interrupted):
        train_runs(plan, plan.runs, stop)
    assert states(plan) == ["pending"] * 4


def test_held_out_text_that_fills_no_sequence_ends_a_group_before_its_first_step(plan: Plan) -> None:
    lm = SimpleNamespace(tokenizer=ByteTokenizer(), tokens_read=0, seconds=0.0)
    text = ListText([["a long text to train on " * 99]], held_out=["short"])
    with pytest.raises(SaeSweepError, match="held-out text of a list does not fill one sequence of 128 tok"):
        OPEN(SimpleNamespace(cache=Path()), plan.runs, text, lm, {})
