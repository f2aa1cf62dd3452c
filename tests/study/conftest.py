"""A finished sweep, and the config of a `task=report` command about it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import PathsConfig, RunConfig, TopKConfig, TrackingConfig
from sae_sweep.plan import Request, WantedRun
from sae_sweep.study import files as study_files
from sae_sweep.study import report as study_report
from sae_sweep.study.config import StudyCommand
from tests.bench.conftest import refused
from tests.study.helpers import facts_of_table1, write_sweep

__all__ = ["refused"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with every run that Table 1 needs."""
    root = tmp_path_factory.mktemp("made") / "paper"
    write_sweep(root, facts_of_table1())
    return root


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep, which a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "multirun" / "paper"))


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing and the page, which take most of the time; other tests check them."""
    monkeypatch.setattr(study_report, "show_report", lambda *_: None)
    for name in ("table1_figure", "table2_figure", "figure13", "figure1"):
        monkeypatch.setattr(study_files, name, lambda *_: None)
    monkeypatch.setattr(study_files, "save", lambda _, path: path)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Request]:
    """The request that `task=report` is called with."""

    def compose(**changes: Any) -> Request:
        paths = PathsConfig(output=str(tmp_path / "multirun"))
        keys = {"task": "report", "sweep": "paper", "paths": paths, "tracking": TrackingConfig("none")}
        run = RunConfig(device="cpu", architecture=TopKConfig())
        return Request(StudyCommand(**{**keys, **changes}), [WantedRun(run, run)])

    return compose
