"""`task=dashboard` as a command."""

import json
from pathlib import Path

import pytest

from sae_sweep.config import RunConfig, TopKConfig
from sae_sweep.store import PlannedRun, SweepFolder, write_json
from tests.conftest import Cli


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "multirun" / "x y")
    runs = []
    for seed in (1, 2):
        config = RunConfig(architecture=TopKConfig(k=16), seed=seed)
        runs.append(PlannedRun(f"s{seed}", f"id{seed}", "g", config, folder.run(f"s{seed}"), {}).record())
    write_json(folder.plan, {"sweep": "x y", "runs": runs})
    return folder


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces
def test_offline_it_says_how_to_apply_the_specs(
    sweep: SweepFolder, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = cli("task=dashboard", 'sweep="x y"', f"paths.output={sweep.root.parent}")
    assert result.code == 0, result.err
    assert str(sweep.dashboard) in result.out
    assert "sae-sweep task=dashboard 'sweep=\"x y\"'" in result.out
    assert "matched/seed" in sweep.dashboard.read_text()
    assert json.loads(sweep.dashboard.read_text())["project"] == "sae_sweep"


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces
def test_the_command_that_applies_them_names_the_same_project(sweep: SweepFolder, cli: Cli) -> None:
    which = ('sweep="x y"', f"paths.output={sweep.root.parent}", "tracking.mode=offline")
    result = cli("task=dashboard", *which, "tracking.project=a b", "tracking.entity=team")
    assert result.code == 0, result.err
    assert "'tracking.project=\"a b\"' tracking.entity=team" in result.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("sweep=none-such",), "no sweep there"),
        (("tracking=none",), "task=dashboard needs tracking=wandb"),
        (("tracking.project=a/b",), "tracking.project=a/b has /"),
        (("tracking.folder='~none-such/x'",), "~none-such is no home folder"),
    ],
)
def test_what_is_wrong_is_one_line(sweep: SweepFolder, cli: Cli, words: tuple[str, ...], line: str) -> None:
    result = cli("task=dashboard", *words, f"paths.output={sweep.root.parent}")
    assert result.code in (1, 2)
    assert line in result.err
    assert "Traceback" not in result.err


def test_a_name_that_wandb_refuses_is_known_to_the_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    result = cli("task=plan", "model=gpt2-pico", "dataset=stdlib_docs", "layer=2")
    assert result.code == 2
    assert "WANDB_PROJECT=a/b has /" in result.err
