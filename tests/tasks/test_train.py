"""`task=train` with a damaged run: the launcher gets the others, and the sweep stays the same sweep."""

import dataclasses
from pathlib import Path
from typing import NoReturn

import pytest

from sae_sweep.config import CommandConfig, ConfigError
from sae_sweep.plan import Plan, Request
from sae_sweep.signals import StopRequest
from sae_sweep.store import PlannedRun, set_state, state
from sae_sweep.tasks import match, train
from tests.launch.conftest import plan, text_folder

__all__ = ["plan", "text_folder"]


class Launcher:
    def __init__(self) -> None:
        self.trained: list[str] = []

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        for run in plan.runs:
            set_state(run, "failed", error="not trained in this test")
            self.trained.append(run.name)
        return True


@pytest.fixture
def launcher(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    launcher = Launcher()
    monkeypatch.setattr(train, "make_plan", lambda request: plan)
    monkeypatch.setattr(train, "open_launcher", lambda request: launcher)
    monkeypatch.setattr(train, "refuse_known_problems", lambda runs, cache: [])
    monkeypatch.setattr(match, "compare_finished", lambda *args: 0)
    return launcher


REQUEST = Request(CommandConfig(), [])


def test_a_damaged_run_is_left_out_named_and_counted(
    plan: Plan, launcher: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = plan.runs
    dataclasses.replace(plan, runs=(first,)).save()  # the command adds the second
    set_state(first, "done")
    first.folder.status.write_text("{")
    assert train.train(REQUEST) == 2  # the damaged one, and the one that the launcher failed
    assert launcher.trained == [second.name]
    assert first.folder.status.read_text() == "{"
    damage = [line for line in caplog.text.splitlines() if str(first.folder.status) in line]
    assert len(damage) == 1
    assert "remove it to train this run again" in damage[0]


def test_nothing_is_launched_if_a_problem_is_known(
    plan: Plan, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runs: list[PlannedRun], cache: Path) -> NoReturn:
        raise ConfigError([f"{run.name} has no text" for run in runs])

    set_state(plan.runs[0], "done")
    monkeypatch.setattr(train, "refuse_known_problems", refuse)
    with pytest.raises(ConfigError) as caught:
        train.train(REQUEST)
    assert caught.value.problems == (f"{plan.runs[1].name} has no text",)
    assert launcher.trained == []


def test_nothing_is_launched_if_every_run_is_damaged(plan: Plan, launcher: Launcher) -> None:
    for run in plan.runs:
        set_state(run, "done")
        run.folder.status.write_bytes(b"\x00" * 512)
    assert train.train(REQUEST) == len(plan.runs)
    assert launcher.trained == []
    assert [state(run.folder) for run in plan.runs] == ["damaged", "damaged"]
