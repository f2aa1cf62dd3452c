"""A finished sweep, and the config of a `task=report` command about it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import Config, PathsConfig, TrackingConfig
from sae_sweep.study import files as study_files
from tests.study.helpers import facts_of_table1, write_sweep


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
    """Skip drawing, which takes most of the time; other tests check the figures."""
    for name in ("table1_figure", "table2_figure", "figure13", "figure1"):
        monkeypatch.setattr(study_files, name, lambda *_: None)
    monkeypatch.setattr(study_files, "save", lambda _, path: path)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Config]:
    """What `task=report` is typed with."""

    def compose(**changes: Any) -> Config:
        paths = PathsConfig(output=str(tmp_path / "multirun"))
        return Config(
            **{
                "task": "report",
                "sweep": "paper",
                "paths": paths,
                "tracking": TrackingConfig("none"),
                "device": "cpu",
                **changes,
            }
        )

    return compose
