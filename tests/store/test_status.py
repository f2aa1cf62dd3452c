"""`status.json`: typed, kept from state to state, and never believed if it is damaged."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from sae_sweep.config import RunConfig, SaeSweepError, TopKConfig
from sae_sweep.store import (
    DAMAGED,
    PlannedRun,
    RunFolder,
    Status,
    freeze,
    read_config,
    read_shown_status,
    read_status,
    readable,
    report_failed,
    set_state,
    state,
    unfinished,
    write_json,
)
from tests.store.damage import check_reader, check_without_checksum, lost_lines, outcome

LM = {"pass": "1-2", "tokens": 5, "seconds": 0.5, "alone": 9}


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    folder = RunFolder(tmp_path / "run")
    return PlannedRun("run", "abc", "group", RunConfig(), folder, {"corpus": "c", "model": "m"})


def test_a_status_comes_back_typed(run: PlannedRun) -> None:
    set_state(run, "done", tokens=3, seconds=1.5, lm=LM)
    status = read_status(run.folder)
    assert (status.state, status.name, status.run_id, status.error) == ("done", "run", "abc", None)
    assert (status.tokens, status.seconds, status.lm) == (3, 1.5, LM)
    assert status.fingerprints == {"corpus": "c", "model": "m"}
    assert status.since == status.times["done"]


def test_a_run_that_never_started_is_pending(run: PlannedRun) -> None:
    assert read_status(run.folder) == Status("pending", run_id=None)
    assert state(run.folder) == "pending"


def test_a_later_state_keeps_what_holds_for_the_whole_run(run: PlannedRun) -> None:
    resolved = {"lm_dtype": "float32", "threads": 2, "attention": None}
    mixed = [{"step": 7, "threads": 1}]
    set_state(run, "running", resolved=resolved, mixed=mixed, fell_back={"sdpa": "why"}, job=3, error="old")
    set_state(run, "done", tokens=4)
    status = read_status(run.folder)
    assert status.times.keys() == {"running", "done"}
    assert (status.resolved, status.mixed, status.fell_back, status.job) == (
        resolved,
        tuple(mixed),
        {"sdpa": "why"},
        3,
    )
    assert status.error is None
    set_state(run, "pending", job=None, mixed=[])
    assert (read_status(run.folder).job, read_status(run.folder).mixed) == (None, ())


def test_a_run_whose_later_evaluation_failed_keeps_what_it_was_trained_with(run: PlannedRun) -> None:
    mark = {"bytes": 7, "checksum": "c", "tokens": 3}
    set_state(run, "done", tokens=3, seconds=1.5, lm=LM, history=mark)
    set_state(run, "failed", error="the disk is full")
    set_state(run, "pending", job=None)
    status = read_status(run.folder)
    assert (status.tokens, status.seconds, status.lm, status.history) == (3, 1.5, LM, mark)
    set_state(run, "running")
    status = read_status(run.folder)
    assert (status.tokens, status.seconds, status.lm, status.history) == (None, None, None, None)


def test_no_damage_is_believed(run: PlannedRun) -> None:
    set_state(run, "running", resolved={"threads": 2}, mixed=[{"step": 3}], job=1)
    set_state(run, "failed", error="line\nline", tokens=3, seconds=1.5, lm=LM)
    check_reader(run.folder.status, lambda: read_status(run.folder))


def test_no_lost_lines_go_unnoticed(run: PlannedRun) -> None:
    set_state(run, "done", tokens=3, lm=LM)
    whole, right = run.folder.status.read_bytes(), read_status(run.folder)
    for changed in lost_lines(whole):
        run.folder.status.write_bytes(changed)
        assert outcome(run.folder.status, lambda: read_status(run.folder)) in (None, right), changed


def test_a_status_of_an_earlier_version_is_read_or_refused(run: PlannedRun) -> None:
    set_state(run, "done", tokens=3, seconds=1.5, lm=LM, resolved={"threads": 2}, mixed=[{"step": 3}])
    check_without_checksum(run.folder.status, lambda: read_status(run.folder))


def test_fingerprints_of_an_earlier_version_stand_beside_the_other_keys(run: PlannedRun) -> None:
    write_json(run.folder.status, {"state": "done", "run_id": "abc", "corpus": "c", "model": "m"})
    assert read_status(run.folder).fingerprints == {"corpus": "c", "model": "m"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"run_id": "abc"}, "state is missing"),
        ({"state": "done"}, "run_id is missing"),
        ({"state": "done", "run_id": None}, "run_id is null"),
        ({"state": "finished", "run_id": "abc"}, "state=finished: not one of pending, running, done, failed"),
        ({"state": "done", "run_id": "abc", "times": "noon"}, "times='noon': must be a mapping"),
        ({"state": "done", "run_id": "abc", "times": {"done": "noon"}}, "times.done=noon: no time"),
        ({"state": "done", "run_id": "abc", "tokens": True}, "tokens=True: must be a whole number or null"),
        ({"state": "done", "run_id": "abc", "tokens": -1}, "tokens=-1: must be at least 0"),
        ({"state": "done", "run_id": "abc", "toker": 1}, "toker: unknown key"),
        ({"state": "done", "run_id": "abc", "lm": {"tokens": 1}}, "lm.pass is missing"),
    ],
)
def test_each_wrong_value_is_named_with_file_and_remedy(
    run: PlannedRun, record: dict[str, object], words: str
) -> None:
    write_json(run.folder.status, record)
    with pytest.raises(SaeSweepError) as refused:
        read_status(run.folder)
    line = str(refused.value)
    assert line.startswith(f"cannot read {run.folder.status}: ")
    assert words in line
    assert line.endswith("; remove it to train this run again")


def test_a_damaged_run_is_left_out_and_counted(run: PlannedRun, caplog: pytest.LogCaptureFixture) -> None:
    other = dataclasses.replace(run, name="other", folder=RunFolder(run.folder.root.parent / "other"))
    set_state(run, "done")
    run.folder.status.write_text("{")
    assert state(run.folder) == DAMAGED
    assert readable([run, other]) == [other]
    assert unfinished([run, other]) == [other]
    assert report_failed([run, other]) == 1
    assert f"run is left out: cannot read {run.folder.status}: " in caplog.text
    with pytest.raises(SaeSweepError, match="remove it to train this run again"):
        freeze(run)
    assert run.folder.status.read_text() == "{"


def test_what_failed_for_one_cause_is_one_line(run: PlannedRun, caplog: pytest.LogCaptureFixture) -> None:
    folders = [RunFolder(run.folder.root.parent / f"a run {number}") for number in range(5)]
    runs = [dataclasses.replace(run, name=folder.root.name, folder=folder) for folder in folders]
    for one in runs[:4]:
        set_state(one, "failed", error="the disk is full")
    set_state(runs[4], "failed", error="its loss is nan")
    assert report_failed(runs) == 5
    assert caplog.messages == [
        f"failed: a run 0, a run 1, a run 2 and 1 more (see '{folders[0].log}')",
        f"failed: a run 4 (see '{folders[4].log}')",
    ]


def test_a_status_that_is_damaged_while_its_run_trains_is_written_again(
    run: PlannedRun, caplog: pytest.LogCaptureFixture
) -> None:
    set_state(run, "running")
    run.folder.status.write_text("{")
    with caplog.at_level(logging.WARNING):
        set_state(run, "done")
    assert state(run.folder) == "done"
    assert "it is written again" in caplog.text


def test_a_link_to_nothing_is_not_a_run_that_never_started(run: PlannedRun, tmp_path: Path) -> None:
    run.folder.root.mkdir()
    run.folder.status.symlink_to(tmp_path / "unmounted" / "status.json")
    assert state(run.folder) == DAMAGED


def test_the_file_is_plain_json_without_empty_values(run: PlannedRun) -> None:
    set_state(run, "pending")
    record = json.loads(run.folder.status.read_text())
    assert "error" not in record
    assert "mixed" not in record


def test_a_status_of_another_run_is_refused(run: PlannedRun) -> None:
    set_state(run, "done")
    assert read_status(run.folder, "abc").state == "done"
    with pytest.raises(SaeSweepError, match=r"status\.json: it is of run abc, not xyz; restore it"):
        read_status(run.folder, "xyz")


def test_damaged_metrics_of_a_finished_run_are_named_and_do_not_leave_it_out(
    run: PlannedRun, caplog: pytest.LogCaptureFixture
) -> None:
    set_state(run, "done")
    run.folder.metrics.write_text("{")
    assert readable([run]) == [run]
    assert unfinished([run]) == [run]  # to be evaluated
    assert caplog.text.count(f"run is evaluated again: cannot read {run.folder.metrics}: ") == 1


def test_the_config_of_a_finished_run_stays_and_a_missing_one_is_written(run: PlannedRun) -> None:
    run = dataclasses.replace(run, config=RunConfig(architecture=TopKConfig()))
    set_state(run, "done")
    freeze(run)
    assert read_config(run.folder) == run.config
    freeze(dataclasses.replace(run, config=dataclasses.replace(run.config, layer=3)))
    assert read_config(run.folder) == run.config


@pytest.mark.parametrize(
    "left", ["metrics.json", "checkpoint/state.safetensors", "checkpoint/before.safetensors"]
)
def test_a_run_that_was_begun_and_has_no_status_is_damage_in_a_table(run: PlannedRun, left: str) -> None:
    assert read_shown_status(run.folder, run.run_id).state == "pending"  # it never started
    (run.folder.root / left).parent.mkdir(parents=True, exist_ok=True)
    (run.folder.root / left).touch()
    with pytest.raises(SaeSweepError, match=r"status\.json: it is missing; put it back, or launch the sweep"):
        read_shown_status(run.folder, run.run_id)
    assert state(run.folder) == "pending"  # so that a launch trains it
