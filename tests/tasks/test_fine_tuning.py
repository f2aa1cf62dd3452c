"""Fine-tuned runs of a sweep: which are compared, and what is written of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import csv

from sae_sweep.analysis import ComparisonEntry
from sae_sweep.config import EmbeddedDataset, InitConfig, OptimizerConfig, RunConfig, TopKConfig, build
from sae_sweep.report.fine_tuning import Domain, effects_figure, gained, sentence, write_fine_tuning
from sae_sweep.report.page.sections import Section
from sae_sweep.store import read_record
from sae_sweep.tasks.fine_tuning import find_domains
from sae_sweep.tasks.finished import Finished

START = {"start_explained_variance": 0.5, "start_explained_variance_rare": 0.4, "start_ce_delta": 0.3}


def _run(sae: str | None, tilt: float | None, order: int, **keys: Any) -> Finished:
    config = RunConfig(
        dataset=EmbeddedDataset(name="stdlib_docs"),
        architecture=TopKConfig(),
        init=InitConfig(sae=sae),
        optimizer=OptimizerConfig(tilt=tilt),
        data_seed=order,
    )
    name = f"{sae} {tilt} {order} {keys}"
    swept = {"init.sae": config.init.label or None, "optimizer.tilt": tilt, "data_seed": order, **keys}
    return Finished(None, config, ComparisonEntry(name, swept, torch.eye(2), 0.0))  # type: ignore[arg-type]


def _sweep(**keys: Any) -> tuple[list[Finished], dict[str, dict[str, float]]]:
    runs = [
        _run(sae, tilt, order, **keys)
        for sae in (None, "a/general")
        for tilt in (None, 10)
        for order in (0, 1)
    ]
    metrics = {}
    for run in runs:
        tilt, order = bool(run.config.optimizer.tilt), run.config.data_seed
        known = {"explained_variance": 0.8 + order / 100 - tilt / 50, "ce_delta": 0.1}
        known["explained_variance_rare"] = 0.6 + order / 100 + tilt * (1 + order) / 100
        metrics[run.entry.name] = known | (START if run.config.init.sae else {})
    return runs, metrics


def test_orders_of_the_shuffle_are_pairs_of_their_own() -> None:
    runs, metrics = _sweep()
    shuffled = []
    for one in runs:
        config = replace(one.config, data_seed=0, shuffle_seed=one.config.data_seed)
        shuffled.append(replace(one, config=config))
    (plain,), (found,) = find_domains(runs, metrics), find_domains(shuffled, metrics)
    assert found.effects == plain.effects
    assert {one.runs for one in found.effects if one.against is not None} == {2}


def _domains(*keys: dict[str, Any]) -> list[Domain]:
    sweeps = [_sweep(**each) for each in keys or ({},)]
    metrics = {name: known for _, each in sweeps for name, known in each.items()}
    return find_domains([run for runs, _ in sweeps for run in runs], metrics)


def test_a_fine_tuned_run_is_compared_with_its_start_and_with_runs_from_scratch(tmp_path: Path) -> None:
    (domain,) = _domains()
    assert domain.label == ""
    said = sentence(domain)
    assert "fine-tuned against general SAE: +30.5 [+24.1, +36.9] on all tokens, +20.5 [" in said
    assert "fine-tuned, tilt 10 against fine-tuned: -2.0 [-2.0, -2.0] on all tokens, " in said
    assert "+1.5 [-4.9, +7.9], which may be chance, on the rarest twentieth" in said
    table = write_fine_tuning(tmp_path / "it", [domain])
    assert table is not None
    rows = csv.read_csv(table).to_pylist()
    assert {row["against"] for row in rows} == {
        "",
        "general SAE",
        "from scratch",
        "from scratch, tilt 10",
        "fine-tuned",
    }
    section: Section = build(Section, read_record(tmp_path / "it" / "section.json", ""))
    levels, changes = section.tables
    assert [row[0] for row in levels.rows] == [
        *("general SAE", "from scratch", "from scratch, tilt 10", "fine-tuned", "fine-tuned, tilt 10")
    ]
    assert levels.rows[0][1:5] == (1.0, 0.5, 0.4, 0.3)
    assert changes.rows[0][:4] == ("fine-tuned", "general SAE", 2.0, pytest.approx(30.5))
    assert len(set(changes.columns)) == len(changes.columns)  # W&B's tables want no name twice
    assert gained([domain])["fine-tuned against general SAE/explained_variance"] == pytest.approx(0.305)
    assert set(section.runs) == set(domain.runs)
    assert (tmp_path / "it" / "explained_variance.png").exists()
    assert write_fine_tuning(tmp_path / "it", []) is None
    assert not (tmp_path / "it").exists()


def test_runs_that_differ_in_more_are_compared_apart(tmp_path: Path) -> None:
    domains = _domains({"k": 16}, {"k": 32})
    assert [one.label for one in domains] == ["k=16", "k=32"]
    assert [len(one.runs) for one in domains] == [8, 8]
    write_fine_tuning(tmp_path / "it", domains)
    section: Section = build(Section, read_record(tmp_path / "it" / "section.json", ""))
    assert list(section.figures) == ["explained_variance_1.png", "explained_variance_2.png"]


def test_the_figure_says_over_how_many_orders_its_intervals_are() -> None:
    (domain,) = _domains()
    words = " ".join(text.get_text() for text in effects_figure(domain).texts)
    assert "Lines: 95% intervals over 2 orders of the data." in words


def test_without_an_evaluated_start_there_is_nothing_to_compare() -> None:
    runs, metrics = _sweep()
    scratch = [run for run in runs if run.config.init.sae is None]
    assert find_domains(scratch, metrics) == []
