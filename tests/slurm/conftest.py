"""Fixtures: one SLURM for all tests here, if it can be started."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import small, text_folder
from tests.slurm.cluster import Slurm, why_not

__all__ = ["small", "text_folder"]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        yield cluster


@pytest.fixture
def words(slurm: Slurm, small: list[str]) -> list[str]:
    """Overrides of a small run that trains as a SLURM job."""
    keys = {"gpus": 0, "cpus": 1, "mem_gb": "null", "poll_s": 0.3, "lost_after_s": 3}
    return [*small, "tracking=none", "launcher=slurm", *(f"launcher.slurm.{k}={v}" for k, v in keys.items())]
