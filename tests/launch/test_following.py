"""The progress of jobs, read from what they write."""

import dataclasses
import json
import time
from collections.abc import Mapping

import pytest

from sae_sweep.launch import following
from sae_sweep.launch.following import Following, group_labels
from sae_sweep.plan import Plan
from sae_sweep.store import set_state


class Recorder:
    """Stands in for `Progress`."""

    made: list["Recorder"]

    def __init__(self, label: str, total: int, initial: int = 0, row: int | None = None) -> None:
        self.about = (label, total, initial, row)
        self.shown: list[tuple[int, Mapping[str, str]]] = []
        self.closed = False
        Recorder.made.append(self)

    def show(self, tokens: int, values: Mapping[str, str]) -> None:
        self.shown.append((tokens, values))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder.made = []
    monkeypatch.setattr(following, "Progress", Recorder)
    monkeypatch.setattr(following, "_LOOK_EVERY_S", 0.0)


def point(tokens: int, loss: float) -> str:
    return json.dumps({"tokens": tokens, "time": time.time(), "train/loss": loss}) + "\n"


def test_a_bar_per_running_job_from_its_runs_files(plan: Plan) -> None:
    first, second = plan.runs
    jobs = Following("job", {"0": [first], "1": [second]})
    jobs.look(["0", "1"])
    assert not Recorder.made
    set_state(second, "running")
    jobs.look(["0", "1"])
    second.folder.history.write_text(point(4096, 3.0) + point(8192, 2.0) + '{"torn')
    jobs.look(["0", "1"])
    (bar,) = Recorder.made
    assert bar.about == ("seed 2", second.config.steps * second.config.batch, 0, 0)
    assert bar.shown == [(0, {}), (8192, {"loss": "2"})]
    set_state(first, "running")
    jobs.look(["0", "1"])
    assert [bar.about[3] for bar in Recorder.made] == [0, 1]  # below each other
    jobs.look(["0"])
    assert [bar.closed for bar in Recorder.made] == [True, False]
    jobs.close()
    assert [bar.closed for bar in Recorder.made] == [True, True]


def test_the_position_of_a_group_is_that_of_its_foremost_run(plan: Plan) -> None:
    for run, tokens in zip(plan.runs, (100, 300), strict=True):
        set_state(run, "running")
        run.folder.history.write_text(point(tokens, 1.0 * tokens))
    jobs = Following("job", {"0": list(plan.runs)})
    jobs.look(["0", "of runs that this command does not train"])
    (bar,) = Recorder.made
    assert bar.about[0] == "2 runs"
    assert bar.shown == [(300, {"loss": "300"})]


def test_jobs_that_wait_are_counted_once_a_minute(
    plan: Plan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    jobs = Following("SLURM job", {"7_0": [plan.runs[0]], "7_1": [plan.runs[1]]})
    jobs.look(["7_0", "7_1"])
    assert not caplog.messages
    monkeypatch.setattr(following, "LINE_EVERY_S", 0.0)
    jobs.look(["7_0", "7_1"])
    assert caplog.messages == ["2 of 2 SLURM jobs have not begun to train"]
    why = Following("SLURM job", {"7_0": [plan.runs[0]]}, lambda ids: f"{ids[0]}: Priority")
    why.look(["7_0"])
    assert caplog.messages[-1] == "1 of 1 SLURM jobs have not begun to train (7_0: Priority)"


def test_groups_are_called_by_what_tells_them_apart(plan: Plan) -> None:
    first, second = plan.runs
    deeper = [dataclasses.replace(run, config=dataclasses.replace(run.config, layer=3)) for run in plan.runs]
    assert group_labels([[first, second], deeper]) == ["L8", "L3"]
    assert group_labels([[first], [second]]) == ["seed 1", "seed 2"]
    assert group_labels([[first, second]]) == ["2 runs"]
    assert group_labels([[first]]) == ["1 run"]
    crossed = group_labels([[first, deeper[1]], [second, deeper[0]]])
    assert len(set(crossed)) == 2
    assert all(crossed)
