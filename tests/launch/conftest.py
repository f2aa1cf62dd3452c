"""A small text folder, and a plan of two runs that nothing trains."""

from pathlib import Path

import pytest

from sae_sweep.config import Config, FilesDataset, LauncherConfig, SlurmConfig, TopKConfig
from sae_sweep.plan.plan import Plan, make_plan
from tests.e2e.conftest import text_folder

__all__ = ["plan", "text_folder"]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    parts = {"architecture": TopKConfig(), "dataset": FilesDataset(name="files", path="texts")}
    launcher = LauncherConfig(cluster="slurm", slurm=SlurmConfig(poll_s=0.01, lost_after_s=0.05))
    configs = [Config(**parts, seed=seed, sweep="mine", launcher=launcher) for seed in (1, 2)]  # type: ignore[arg-type]
    return make_plan(configs, configs, lambda config: {"corpus": "abc"})
