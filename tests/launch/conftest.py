"""Fixtures: a small text folder, and a plan of two runs that are not trained."""

from pathlib import Path

import pytest

from sae_sweep.config import CommandConfig, FilesDataset, LauncherConfig, RunConfig, SlurmConfig, TopKConfig
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.store import PlannedRun, set_state, write_metrics
from sae_sweep.store.status import evaluation_keys
from tests.e2e.conftest import text_folder

__all__ = ["plan", "text_folder"]

SLURM = SlurmConfig(poll_s=0.01, lost_after_s=0.05, setup=["module load x"], extra={"nice": 5})


def finish(run: PlannedRun) -> None:
    """Write the files that say that a run is done and evaluated."""
    write_metrics(run.folder, run.run_id, {"init_match": 0.1}, evaluation_keys(run.config))
    set_state(run, "done")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    dataset = FilesDataset(name="files", path="texts")
    configs = [RunConfig(architecture=TopKConfig(), dataset=dataset, seed=seed) for seed in (1, 2)]
    command = CommandConfig(sweep="mine", launcher=LauncherConfig(kind="slurm", slurm=SLURM))
    wanted = [WantedRun(config, config) for config in configs]
    return make_plan(Request(command, wanted), lambda config: {"corpus": "abc"})
