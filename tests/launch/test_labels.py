"""Short names, flat keys and tags of the runs, also in a job that knows only its own."""

import dataclasses
from pathlib import Path

from sae_sweep.config import CommandConfig, OptimizerConfig, RunConfig, TopKConfig
from sae_sweep.launch.labels import run_labels
from sae_sweep.plan import Plan
from sae_sweep.store import PlannedRun, SweepFolder

BASE = RunConfig(architecture=TopKConfig(k=16))


def planned(folder: SweepFolder, seed: int, lr: float) -> PlannedRun:
    config = dataclasses.replace(BASE, seed=seed, optimizer=OptimizerConfig(lr=lr))
    name = f"run_s{seed}_lr{lr}"
    return PlannedRun(name, f"id-{name}", "group", config, folder.run(name), {})


def test_a_job_names_its_runs_as_the_whole_sweep_does(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    runs = tuple(planned(folder, seed, lr) for seed in (1, 2) for lr in (0.1, 0.2))
    whole = Plan("x", folder, runs, CommandConfig(experiment="quickstart"))
    whole.save()
    labels = run_labels(dataclasses.replace(whole, runs=runs[:1]))[runs[0].run_id]
    assert labels == run_labels(whole)[runs[0].run_id]
    assert labels.name == "lr 0.1 seed 1"
    assert list(labels.tags) == ["owt", "topk", "L8", "quickstart"]
    assert labels.keys["optimizer/lr"] == 0.1
    assert {key: labels.keys[key] for key in ("dataset", "architecture", "k", "seed", "layer")} == {
        "dataset": "owt",
        "architecture": "topk",
        "k": 16,
        "seed": 1,
        "layer": 8,
    }
    assert all(isinstance(value, str | int | float | None) for value in labels.keys.values())


def test_a_damaged_plan_concerns_labels_only(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.plan.write_text("{")
    run = planned(folder, 1, 0.1)
    labels = run_labels(Plan("x", folder, (run,), CommandConfig()))
    assert labels[run.run_id].name == run.name
