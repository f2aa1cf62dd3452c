"""No test talks to a server, and none inherits what another one learnt about it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.config import RunConfig, TopKConfig, TrackingConfig
from sae_sweep.store import PlannedRun, SweepFolder
from sae_sweep.store.resolved import Conditions
from sae_sweep.tracking import RunSink, open_sink, wandb_run
from tests.training.fakes import CONDITIONS

OpenSink = Callable[..., RunSink]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    wandb_run._gave_up_online.clear()
    wandb_run._say_how_to_sync.cache_clear()


@pytest.fixture
def open_one(tmp_path: Path) -> OpenSink:
    """Open the sink of a run by name, in the sweep folder `tmp_path`."""

    def open_one(
        name: str = "run", *, backend: str = "wandb", conditions: Conditions = CONDITIONS
    ) -> RunSink:
        sweep = SweepFolder(tmp_path)
        config = RunConfig(architecture=TopKConfig(), seed=42)
        run = PlannedRun(name, f"id-{name}", "group", config, sweep.run(name), {"corpus": "abc"})
        return open_sink(run, TrackingConfig(backend=backend), sweep, conditions)

    return open_one
