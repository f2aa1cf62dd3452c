"""Memory and disk that a plan needs are known before anything is loaded."""

import dataclasses
import logging
from pathlib import Path

import pytest

from sae_sweep.config import (
    CommandConfig,
    ConfigError,
    LauncherConfig,
    ModelConfig,
    RunConfig,
    SaeSweepError,
)
from sae_sweep.plan import Plan, room
from sae_sweep.plan.room import lacking, memory_bytes, refuse_without_room
from sae_sweep.store import PlannedRun, RunFolder, SweepFolder
from sae_sweep.training.needs import member_bytes

GIB = 2**30
WEIGHTS = 4 * (2 * 768 * 768 * 16 + 2 * 768 * 16 + 768)
"""Bytes of the baseline's SAE."""


def make_plan(*configs: RunConfig, launcher: str = "inprocess") -> Plan:
    runs = tuple(
        PlannedRun(str(number), str(number), config.model.path, config, RunFolder(Path(str(number))), {})
        for number, config in enumerate(configs)
    )
    command = CommandConfig(launcher=LauncherConfig(kind=launcher))
    return Plan("x", SweepFolder(Path("multirun/x")), runs, command, None)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "machine_memory", lambda: 3 * GIB)
    monkeypatch.setattr(room, "free_disk", lambda folder: GIB)


def config(**values: object) -> RunConfig:
    return dataclasses.replace(RunConfig(device="cpu"), **values)


def test_the_largest_run_and_all_files_are_added_up() -> None:
    small, large = config(dictionary=1), config()
    found = room.room(make_plan(small, large, large))
    assert found.memory == memory_bytes(large)
    assert memory_bytes(large) > member_bytes(large, 768)
    assert found.results == 2 * WEIGHTS + 4 * small.parameters(768)
    assert found.checkpoints == 6 * found.results  # the runs share their passes
    assert (found.machine_memory, found.free_disk) == (3 * GIB, GIB)


def test_a_model_of_unknown_width_has_no_sizes() -> None:
    unknown = make_plan(config(model=ModelConfig(path="someone/model")))
    found = room.room(unknown)
    assert (found.memory, found.results, found.checkpoints) == (None, None, None)
    assert lacking(unknown, unknown.runs) == []


def test_what_can_never_fit_is_refused_all_at_once() -> None:
    large = make_plan(config(dictionary=2048), config(dictionary=2048, seed=7), config(dictionary=2))
    with pytest.raises(ConfigError) as caught:
        refuse_without_room(large, large.runs)
    memory, disk = caught.value.problems
    assert memory.startswith(
        "dictionary=2048 on gpt2-small: an SAE with its optimiser and activations needs at"
    )
    assert memory.endswith("this machine has 3 GiB: lower dictionary or activations.buffer_tokens")
    assert disk.startswith(
        "no disk space left for the weights of 3 runs, 18 GiB, in multirun/x, where 1 GiB are"
    )


def test_a_disk_that_is_too_small_is_no_mistake_in_the_config() -> None:
    many = make_plan(*(config(seed=seed) for seed in range(20)))
    with pytest.raises(
        SaeSweepError, match=r"no disk space left for the weights of 20 runs, 1.41 GiB"
    ) as caught:
        refuse_without_room(many, many.runs)
    assert not isinstance(caught.value, ConfigError)


def test_done_runs_need_no_room_and_slurm_s_nodes_are_not_asked() -> None:
    large = make_plan(config(dictionary=2048), config(dictionary=2))
    refuse_without_room(large, large.runs[1:])
    (problem,) = lacking(make_plan(config(dictionary=2048), launcher="slurm"), large.runs[:1])
    assert problem.startswith("no disk space left for the weights of 1 runs")


def test_checkpoints_that_may_fill_the_disk_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    many = make_plan(*(config(seed=seed) for seed in range(4)))
    with caplog.at_level(logging.WARNING):
        refuse_without_room(many, many.runs)
    (message,) = caplog.messages
    assert "weights take 288 MiB, and checkpoints up to 1.69 GiB for a while" in message
