"""Under which conditions a run that began elsewhere may go on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_sweep.config import LauncherConfig, RunConfig, SaeSweepError, TopKConfig
from sae_sweep.launch.conditions import OnMachine, by_threads, conditions, cpu_threads
from sae_sweep.store import PlannedRun, RunFolder, set_state
from sae_sweep.store.resolved import Conditions, Resolved
from sae_sweep.training.checkpoint import Checkpoint, save_checkpoint

BEGAN = Resolved("cpu AVX512", "bfloat16", "bfloat16", "sdpa", "cpu", 64, 2)
LAUNCHER = LauncherConfig()


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    """A run that was cut at step 7."""
    config = RunConfig(architecture=TopKConfig())
    run = PlannedRun("one", "the-id", "group", config, RunFolder(tmp_path / "one"), {})
    state = {"steps": torch.tensor(7)}
    save_checkpoint(run.folder, "the-id", Checkpoint(state, {"step": 7}, 0, 1.0, BEGAN.as_dict(), []))
    return run


def test_under_the_same_conditions_it_goes_on(run: PlannedRun) -> None:
    found = conditions(run, OnMachine(BEGAN, {}), LAUNCHER, None)
    assert found.mixed == ()
    threads = conditions(run, OnMachine(replace(BEGAN, threads=8), {}), LAUNCHER, None)
    assert threads.mixed == ()  # the number that it began with is taken: see below


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "NVIDIA H100 80GB HBM3"),
        ("lm_dtype", "float32"),
        ("activation_dtype", "float32"),
        ("attention", "eager"),
        ("kernels", "reference"),
        ("lm_batch", 32),
    ],
)
def test_a_typed_command_is_refused_and_names_both_values_and_the_key(
    run: PlannedRun, name: str, value: str
) -> None:
    here = OnMachine(replace(BEGAN, **{name: value}), {})
    with pytest.raises(SaeSweepError) as refused:
        conditions(run, here, LAUNCHER, None)
    message = str(refused.value)
    assert f"{name} {value} instead of {getattr(BEGAN, name)}" in message
    assert "launcher.allow_mixed=true" in message
    assert "\n" not in message
    allowed = conditions(run, here, LauncherConfig(allow_mixed=True), None)
    assert allowed.mixed == ({"step": 7, name: [getattr(BEGAN, name), value]},)


def test_the_key_that_goes_on_unchanged_is_named(run: PlannedRun) -> None:
    with pytest.raises(SaeSweepError, match=r"backend=cpu continues it unchanged"):
        conditions(run, OnMachine(replace(BEGAN, kernels="reference"), {}), LAUNCHER, None)


def test_a_job_that_comes_back_goes_on_and_is_recorded_as_mixed(run: PlannedRun) -> None:
    here = OnMachine(replace(BEGAN, attention="eager"), {"attention": "why"})
    set_state(run, "pending", job=3)
    found = conditions(run, here, LAUNCHER, 3)
    assert found.mixed == ({"step": 7, "attention": ["sdpa", "eager"]},)
    assert found.fell_back == {"attention": "why"}
    with pytest.raises(SaeSweepError, match="allow_mixed"):
        conditions(run, here, LAUNCHER, 4)  # another job: that of a later command


def test_earlier_changes_are_kept(run: PlannedRun) -> None:
    eager = replace(BEGAN, attention="eager")
    earlier = {"step": 3, "attention": ["sdpa", "eager"]}
    later = Checkpoint({"steps": torch.tensor(9)}, {"step": 9}, 0, 1.0, eager.as_dict(), [earlier])
    save_checkpoint(run.folder, "the-id", later)
    assert conditions(run, OnMachine(eager, {}), LAUNCHER, None).mixed == (earlier,)
    back = conditions(run, OnMachine(BEGAN, {}), LauncherConfig(allow_mixed=True), None)
    assert back.mixed == (earlier, {"step": 9, "attention": ["eager", "sdpa"]})


def test_without_a_checkpoint_of_its_own_a_run_starts_anew(run: PlannedRun) -> None:
    other = replace(run, run_id="another")
    assert conditions(other, OnMachine(replace(BEGAN, attention="eager"), {}), LAUNCHER, None).mixed == ()


def test_a_run_keeps_the_threads_that_it_began_with(run: PlannedRun, tmp_path: Path) -> None:
    fresh = replace(run, name="two", folder=RunFolder(tmp_path / "two"))
    with cpu_threads(3):
        assert by_threads([run, fresh], LAUNCHER) == {2: [run], 3: [fresh]}
        assert by_threads([run, fresh], LauncherConfig(threads=5)) == {2: [run], 5: [fresh]}
    set_state(fresh, "pending", resolved=replace(BEGAN, threads=4).as_dict())  # killed before it saved
    assert by_threads([fresh], LAUNCHER) == {4: [fresh]}


def test_threads_are_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_run_that_is_only_evaluated_again_stays_as_it_was_trained(run: PlannedRun, tmp_path: Path) -> None:
    done = replace(run, folder=RunFolder(tmp_path / "done"))
    mixed = [{"step": 3, "attention": ["eager", "sdpa"]}]
    history = {"bytes": 0, "checksum": "x", "tokens": 0}
    set_state(done, "done", resolved=BEGAN.as_dict(), mixed=mixed, job=2, history=history)
    found = conditions(done, OnMachine(replace(BEGAN, attention="eager"), {}), LAUNCHER, 5)
    assert found == Conditions(BEGAN, tuple(mixed), {}, 2)
