"""What the user chose outside our config counts unless a key of ours is set; wrong names are refused."""

from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import ConfigError, TrackingConfig, artifact_name
from sae_sweep.tracking import RunLabels, refuse_wrong_names
from sae_sweep.tracking.environment import wandb_mode
from tests.tracking.conftest import OpenSink
from tests.tracking.offline import OfflineRun, offline_runs

LABELS = RunLabels("seed 42", {"seed": 42}, ["owt", "topk", "x" * 80])
CHOSEN = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "batch-1",
    "WANDB_TAGS": "gpu, night ,owt",
}


def tracked(where: Path, open_one: OpenSink, **tracking: Any) -> OfflineRun:
    sink = open_one(labels=LABELS, **tracking)
    sink.rewind(None)
    sink.finish(failed=False)
    [run] = offline_runs(where)
    return run


def test_without_a_choice_the_sweep_is_the_group(tmp_path: Path, open_one: OpenSink) -> None:
    run = tracked(tmp_path, open_one)
    assert (run.run.project, run.run.entity, run.run.run_group) == ("sae_sweep", "", tmp_path.name)
    assert (run.name, list(run.run.tags)) == ("seed 42", ["owt", "topk", "x" * 64])
    assert (run.config["seed"], run.config["run_name"], run.config["sweep_name"]) == (
        42,
        "run",
        tmp_path.name,
    )


@pytest.mark.usefixtures("fresh_wandb")
def test_wandbs_variables_count(tmp_path: Path, open_one: OpenSink, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name, value in {**CHOSEN, "WANDB_DIR": str(elsewhere)}.items():
        monkeypatch.setenv(name, value)
    run = tracked(elsewhere, open_one)
    assert (run.run.project, run.run.entity, run.run.run_group) == ("theirs", "team", "batch-1")
    assert list(run.run.tags) == ["owt", "topk", "x" * 64, "gpu", "night"]
    assert not (tmp_path / "wandb").exists()


@pytest.mark.usefixtures("fresh_wandb")
def test_our_keys_come_first(tmp_path: Path, open_one: OpenSink, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CHOSEN, "WANDB_DIR": str(tmp_path / "x"), "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    ours = {"project": "p", "entity": "e", "group": "g", "tags": ["t"], "mode": "offline"}
    run = tracked(tmp_path / "ours", open_one, folder=str(tmp_path / "ours"), **ours)
    assert (run.run.project, run.run.entity, run.run.run_group) == ("p", "e", "g")
    assert list(run.run.tags) == ["owt", "topk", "x" * 64, "t"]
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_wandb_disabled_and_wandb_offline_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    settings = tmp_path / "config" / "settings"
    settings.parent.mkdir()
    settings.write_text(f"[default]\nmode = {mode}\nproject = chosen\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(settings.parent))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode(TrackingConfig()) == mode
    assert wandb_mode(TrackingConfig(mode="online")) == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode(TrackingConfig()) == "online"


@pytest.mark.parametrize(
    ("variable", "value", "wrong"),
    [
        ("WANDB_PROJECT", "a/b", "WANDB_PROJECT=a/b has /"),
        ("WANDB_PROJECT", "x" * 129, "is longer than 128 characters"),
        ("WANDB_ENTITY", "me?", "WANDB_ENTITY=me? has ?"),
        ("WANDB_RUN_GROUP", "g" * 129, "WANDB_RUN_GROUP=ggg"),
        ("WANDB_TAGS", f"fine,{'t' * 65}", "WANDB_TAGS: ttt"),
        ("WANDB_TAGS", "a,,b", "WANDB_TAGS: an empty one"),
        ("WANDB_PROJECT", "a\tb", "has \\t"),
        ("WANDB_DIR", "~none-such/x", "~none-such is no home folder"),
        ("WANDB_SWEEP_ID", "abc123", "WANDB_SWEEP_ID=abc123: under `wandb agent` all runs"),
    ],
)
def test_a_name_that_wandb_refuses_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wrong: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        refuse_wrong_names(TrackingConfig())
    [line] = refused.value.problems
    assert wrong in line
    assert len(line) < 300
    refuse_wrong_names(TrackingConfig(backend="none"))
    refuse_wrong_names(TrackingConfig(mode="disabled"))


@pytest.mark.parametrize(
    "keys",
    [
        {"project": "a:b"},
        {"project": ""},
        {"project": " p"},
        {"entity": "a b/c"},
        {"group": "g" * 129},
        {"tags": [""]},
        {"tags": ["t" * 65]},
        {"mode": "sometimes"},
    ],
)
def test_our_keys_have_wandbs_rules(keys: dict[str, Any]) -> None:
    [line] = TrackingConfig(**keys).problems()
    assert line.startswith(f"tracking.{next(iter(keys))}")


@pytest.mark.parametrize("name", ["a b", "naïve_L6", "x" * 129, "a:b", "ok.name-1_2"])
def test_every_run_has_a_name_that_an_artifact_may_have(name: str) -> None:
    import wandb

    found = artifact_name(name)
    assert wandb.Artifact(found, type="model").name == found
    assert (found == name) == (name == "ok.name-1_2")
    assert artifact_name(name + "é") != found
