"""No test talks to a server, and none inherits what another one learnt about it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from sae_sweep.config import RunConfig, TopKConfig, TrackingConfig
from sae_sweep.store import PlannedRun, SweepFolder
from sae_sweep.store.resolved import Conditions
from sae_sweep.tracking import RunLabels, RunSink, open_sink, wandb_run
from tests.training.fakes import CONDITIONS

OpenSink = Callable[..., RunSink]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)  # put back, that of a service would name one that is gone
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    wandb_run._gave_up_online.clear()
    wandb_run._say_how_to_sync.cache_clear()


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as in a new process: it has not read its environment and files yet, nor been silenced."""
    wandb.teardown()
    monkeypatch.setattr("wandb.errors.term._silent", False)
    yield
    wandb.teardown()


@pytest.fixture
def open_one(tmp_path: Path) -> OpenSink:
    """Open the sink of a run by name, in the sweep folder `tmp_path`."""

    def open_one(
        name: str = "run",
        *,
        backend: str = "wandb",
        conditions: Conditions = CONDITIONS,
        labels: RunLabels | None = None,
        **tracking: Any,
    ) -> RunSink:
        sweep = SweepFolder(tmp_path)
        config = RunConfig(architecture=TopKConfig(), seed=42)
        run = PlannedRun(name, f"id-{name}", "group", config, sweep.run(name), {"corpus": "abc"})
        return open_sink(run, TrackingConfig(backend=backend, **tracking), sweep, conditions, labels)

    return open_one
