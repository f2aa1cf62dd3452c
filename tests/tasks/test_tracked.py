"""What W&B gets of a comparison, read back from its offline files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from sae_sweep.analysis import ComparisonEntry, compare
from sae_sweep.config import CommandConfig, MatchingConfig, TrackingConfig
from sae_sweep.report import RunLine, write_comparison
from sae_sweep.report.page.sections import Section, Table, write_section
from sae_sweep.store import SweepFolder
from sae_sweep.tasks.tracked import track_comparison, track_section
from tests.tracking.offline import offline_runs


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def entry(name: str, k: int | str, d_in: int = 8) -> ComparisonEntry:
    rows = torch.randn(16, d_in, generator=torch.Generator().manual_seed(len(str(k))))
    return ComparisonEntry(name=name, keys={"optimizer.lr": k, "seed": name}, decoder=rows, init_match=0.0)


def test_tables_heat_map_and_swept_keys(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    entries = [entry("a", 1), entry("b", 1), entry("c", "two"), entry("d", 1, d_in=4)]
    comparison = compare(entries, MatchingConfig())
    files = write_comparison(folder.matching, comparison)
    lines = [RunLine(name, "done", 5, {"l0": 2.0}, 0.0) for name in "abcd"] + [RunLine("e", "failed")]
    track_comparison(folder, CommandConfig(experiment="e"), comparison, files, lines)
    [run] = offline_runs(folder.root)
    assert run.exit_code == 0
    assert all(len(kinds) == 1 for kinds in run.keys().values())
    assert {key: next(iter(kinds)) for key, kinds in run.keys().items()} == {
        "tokens": "number",
        "runs/metrics": "table-file",
        "matching/pairs": "table-file",
        "matching/shares": "table-file",
        "matching/heat_map": "html-file",
        "matching/matrix": "image-file",
        "matching/cosines": "image-file",
        "matching/top1_cosine": "histogram",
        **{f"matched/{one.key}": "number" for one in comparison.summaries},
    }
    assert run.config["seed"] == ["a", "b", "c", "d"]
    assert run.config["optimizer/lr"] == [1, "two"]
    tables = {
        path.name.split("_")[0]: path for path in folder.root.glob("wandb/*/files/media/table/*/*.json")
    }
    runs = json.loads(tables["metrics"].read_text())
    assert runs["columns"] == ["run", "name", "state", "optimizer.lr", "seed", "eval/l0"]
    assert [row[1:] for row in runs["data"]] == [
        ["a", "done", "1", "a", 2.0],
        ["b", "done", "1", "b", 2.0],
        ["c", "done", "two", "c", 2.0],
        ["d", "done", "1", "d", 2.0],
        ["e", "failed", None, None, None],
    ]
    shares = json.loads(tables["shares"].read_text())
    assert shares["data"][0][1] is None
    assert shares["data"][3][1:] == [None] * 4  # of another width


def section(folder: SweepFolder) -> Path:
    """A section with a matrix, a figure, and dataset names that are no keys of W&B."""
    rows = (("a", 1.5, None), ("b", 2, "-"))
    table = Table("lost, by dataset (%)", ("trained on", "a", "b"), rows)
    (folder.transfer).mkdir(parents=True)
    figure = np.zeros((4, 4))
    pyplot.imsave(folder.transfer / "heat_maps.png", figure)
    figures = {"heat_maps.png": "Rows."}
    return write_section(folder.transfer, Section("Transfer", "", ("r",), (table,), figures)).parent


def test_a_section_is_a_run_with_its_tables_figures_and_numbers(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    track_section(folder, CommandConfig(), section(folder), {"lost on/my text": 0.25, "none": float("nan")})
    [run] = offline_runs(folder.root)
    assert run.exit_code == 0
    assert {key: next(iter(kinds)) for key, kinds in run.keys().items()} == {
        "tokens": "number",
        "analysis/transfer/lost_by_dataset": "table-file",
        "analysis/transfer/heat_maps": "image-file",
        "analysis/transfer/lost_on/my_text": "number",
    }
    assert run.config["runs"] == ["r"]
    [path] = folder.root.glob("wandb/*/files/media/table/**/*.json")
    assert json.loads(path.read_text())["data"] == [["a", 1.5, None], ["b", 2, "-"]]


def test_tables_whose_titles_are_longer_than_keys_may_be_are_all_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    title = "Features that fire in more documents of one dataset, " + "gpt2_" * 30
    tables = tuple(Table(f"{title} {number}", ("a",), ((1,),)) for number in range(2))
    place = write_section(folder.diff("a" * 40), Section("Diff", "", ("r",), tables)).parent
    track_section(folder, CommandConfig(), place, {})
    [run] = offline_runs(folder.root)
    assert len([kinds for kinds in run.keys().values() if "table-file" in kinds]) == 2
    assert "W&B lost" not in caplog.text


def test_without_tracking_a_section_is_sent_nowhere(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    track_section(folder, CommandConfig(tracking=TrackingConfig(backend="none")), section(folder), {})
    assert not list(tmp_path.glob("**/wandb"))
