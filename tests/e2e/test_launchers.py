"""Sweeps trained in other processes: by local workers, and through Hydra's launchers."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job
from hydra.plugins.launcher import Launcher

from sae_sweep.saes import load_sae
from sae_sweep.store import RunFolder, is_held
from tests.conftest import Cli
from tests.slurm.cluster import wait_for


def statuses(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/status.json")}


def same_weights(sweep: Path, twin: Path) -> None:
    runs = [path.parent for path in sweep.glob("*/sae")]
    assert runs
    for run in runs:
        for name, weight in load_sae(run).state_dict().items():
            assert torch.equal(weight, load_sae(twin / run.name).state_dict()[name]), name


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow(reason="each worker is a process that imports torch first")
def test_local_workers_train_what_one_process_would(
    cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train in this process with as many threads, since their number affects the LM's last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    words = [*small, "tracking=none", "data_seed=0,1"]
    result = cli(*words, "sweep=workers", "launcher=local", "launcher.workers=2")
    assert "LM: 2 passes, " in result.err
    assert "check progress with: python -m sae_sweep task=status sweep=workers" in result.err
    sweep = Path("multirun/workers")
    logs = "\n".join(path.read_text() for path in sweep.glob("jobs/*.log"))
    assert result.code == 0, result.err + logs
    assert [status["state"] for status in statuses(sweep).values()] == ["done", "done"]
    assert len({status["pid"] for status in statuses(sweep).values()} - {os.getpid()}) == 2
    assert (sweep / "analysis" / "matching" / "pairs.csv").exists()
    assert cli(*words, "sweep=here").code == 0
    same_weights(sweep, Path("multirun/here"))


@pytest.mark.slow(reason="each worker is a process that imports torch first")
def test_a_terminated_command_lets_its_workers_save(tmp_path: Path, cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "launcher=local", "launcher.workers=1", "data_seed=0,1", "sweep=cut"]
    sweep = tmp_path / "multirun" / "cut"
    command = [sys.executable, "-m", "sae_sweep", *words, "tokens=10_240_000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(file.stat().st_size for file in sweep.glob("*/history.jsonl")), "a logged point")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "stopped by SIGTERM; launch the same command again to resume" in errors
    assert [status["state"] for status in statuses(sweep).values()] == ["pending", "pending"]
    assert len(list(sweep.glob("*/checkpoint/state.safetensors"))) == 1


@pytest.mark.slow(reason="each worker is a process that imports torch first")
def test_workers_save_when_one_alone_is_stopped_and_when_their_command_is_killed(
    tmp_path: Path, small: list[str]
) -> None:
    words = [*small, "tracking=none", "launcher=local", "launcher.workers=2", "data_seed=0,1", "sweep=cut"]
    sweep = tmp_path / "multirun" / "cut"
    command = [sys.executable, "-m", "sae_sweep", *words, "tokens=10_240_000"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=errors)
    wait_for(
        lambda: len([file for file in sweep.glob("*/history.jsonl") if file.stat().st_size]) == 2, "both"
    )
    os.kill(next(iter(statuses(sweep).values()))["pid"], signal.SIGHUP)
    saved = "was stopped by SIGHUP and its runs are saved: launch the same command again"
    wait_for(lambda: saved in (tmp_path / "errors").read_text(), "the first worker's end")
    assert sorted(status["state"] for status in statuses(sweep).values()) == ["pending", "running"]
    process.kill()
    process.wait()
    runs = [path.parent for path in sweep.glob("*/status.json")]
    wait_for(lambda: not any(is_held(RunFolder(run)) for run in runs), "the other's end")
    assert [status["state"] for status in statuses(sweep).values()] == ["pending", "pending"]
    assert len(list(sweep.glob("*/checkpoint/state.safetensors"))) == 2
    logs = [path.read_text() for path in sweep.glob("jobs/*.log")]
    assert all("launch the same command again to resume" in log for log in logs)
    assert not any("Traceback" in log for log in logs)


JOB = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    call, arguments = pickle.load(file)
call(*arguments)
"""


def foreign_job(state: Any, context: Any, function: Any, config: Any, overrides: list[str]) -> None:
    """Run a job as Hydra's submitit launcher does."""
    Singleton.set_state(state)
    composed = context.config_loader.load_sweep_config(config, overrides)
    run_job(
        hydra_context=context,
        task_function=function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


class ForeignLauncher(Launcher):
    """Runs each job in a fresh Python process that gets a pickle, as cluster launchers do."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.arguments = (hydra_context, task_function, config)

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[Any]:
        for overrides in job_overrides:
            path = Path("job.pkl")
            state = Singleton.get_state()
            path.write_bytes(cloudpickle.dumps((foreign_job, (state, *self.arguments, list(overrides)))))
            assert pickle.loads(path.read_bytes())
            subprocess.run([sys.executable, "-c", JOB, str(path)], check=True, env=self.environment())
        return []

    def environment(self) -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> str:
    """Override that chooses the launcher above."""
    alias = "hydra_plugins.sae_sweep_test.ForeignLauncher"
    plugins = Plugins.instance()
    plugins.register(ForeignLauncher)
    plugins.class_name_to_class[alias] = ForeignLauncher
    ConfigStore.instance().store(group="hydra/launcher", name="foreign", node={"_target_": alias})
    return "hydra/launcher=foreign"


@pytest.mark.slow(reason="each job is a process that imports torch first")
def test_a_foreign_launcher_trains_the_frozen_groups(cli: Cli, small: list[str], foreign: str) -> None:
    words = [*small, "tracking=none", "optimizer.lr=1e-3,1e30", "sweep=foreign"]
    result = cli(*words, foreign)
    assert result.code == 1, result.err
    states = {name: status["state"] for name, status in statuses(Path("multirun/foreign")).items()}
    assert sorted(states.values()) == ["done", "failed"]
    assert all(status["pid"] != os.getpid() for status in statuses(Path("multirun/foreign")).values())
    assert len(json.loads(Path("multirun/foreign/plan.json").read_text())["runs"]) == 2
    assert "failed: " in result.err


@pytest.mark.usefixtures("without_figures")
def test_hydras_basic_launcher_leaves_the_groups_to_ours(cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "data_seed=0,1"]
    result = cli(*words, "sweep=basic", "hydra/launcher=basic")
    assert result.code == 0, result.err
    assert [status["state"] for status in statuses(Path("multirun/basic")).values()] == ["done", "done"]
    assert (Path("multirun/basic") / "analysis" / "matching" / "pairs.csv").exists()
    again = cli(*words, "sweep=basic", "hydra/launcher=basic")
    assert again.code == 0
    assert "2 runs, 2 already done" in again.err


def test_a_foreign_launcher_that_breaks_leaves_its_runs_to_what_it_has_queued(
    cli: Cli, small: list[str], foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, job_overrides: Any, initial_job_idx: int) -> list[Any]:
        raise RuntimeError("no room")

    monkeypatch.setattr(ForeignLauncher, "launch", refuse)
    result = cli(*small, "tracking=none", "sweep=broken", foreign)
    assert result.code == 1
    assert "the launcher stopped with RuntimeError: no room" in result.err
    (status,) = statuses(Path("multirun/broken")).values()
    assert status["state"] == "pending"
