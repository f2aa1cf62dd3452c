"""A run is trained on the text and the model that its id was made of, however long its job waited."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sae_sweep.activations.model_files import ASSETS
from sae_sweep.config import (
    CommandConfig,
    FilesDataset,
    InitConfig,
    ModelConfig,
    PathsConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.frozen import freeze_group
from sae_sweep.launch.job import run_job
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.saes import build_sae, save_sae
from sae_sweep.store import prepare, read_status


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One run, of a model and a text in folders that can be changed."""
    shutil.copytree(ASSETS / "gpt2-pico", tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"text {name}")
    config = RunConfig(
        architecture=TopKConfig(),
        model=ModelConfig(path=str(tmp_path / "model")),
        dataset=FilesDataset(path=str(tmp_path / "texts")),
    )
    command = CommandConfig(sweep="mine", paths=PathsConfig(output=str(tmp_path), cache=str(tmp_path / "c")))
    return make_plan(Request(command, [WantedRun(config, config)]))


@pytest.mark.parametrize("changed", ["texts/a.txt", "model/model.safetensors", "model/tokenizer.json"])
def test_a_text_or_model_that_changed_after_planning_is_refused(
    plan: Plan, tmp_path: Path, changed: str
) -> None:
    run = plan.runs[0]
    refuse_other_content(run, tmp_path)
    before = (tmp_path / changed).read_bytes()
    (tmp_path / changed).write_bytes(before + b" ")
    what = changed[: len("text")] if changed.startswith("text") else "model"
    with pytest.raises(SaeSweepError, match=f"the {what} .* changed after"):
        refuse_other_content(run, tmp_path)
    refuse_other_content(run, tmp_path, ("model",) if what == "text" else ("corpus",))
    (tmp_path / changed).write_bytes(before)
    refuse_other_content(run, tmp_path)


def test_a_job_does_not_train_on_a_text_that_changed_while_it_waited(plan: Plan, tmp_path: Path) -> None:
    prepare(plan.runs)
    number = freeze_group(plan, plan.runs).number
    (tmp_path / "texts" / "b.txt").write_text("another text")
    run_job(plan.folder.root, number)
    status = read_status(plan.runs[0].folder)
    assert status.state == "failed"
    assert "changed after" in str(status.error)


def test_an_sae_to_start_from_that_changed_after_planning_is_refused(plan: Plan, tmp_path: Path) -> None:
    general, run = tmp_path / "general", plan.runs[0]
    for seed in (1, 2):
        save_sae(build_sae(TopKConfig(), 128, 2048, seed=seed, numerics="modern"), general, metadata={})
        if seed == 1:
            config = replace(run.config, init=InitConfig(sae=str(general)))
            (started,) = make_plan(Request(plan.command, [WantedRun(config, config)])).runs
            assert (started.group, started.run_id != run.run_id) == (run.group, True)
            refuse_other_content(started, tmp_path)
    with pytest.raises(SaeSweepError, match=f"the SAE {general} changed after"):
        refuse_other_content(started, tmp_path)
