"""`task=match` with text, and a sweep of synthetic activations, from training to what was recovered."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Cli


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow(reason="two SAEs are trained, and text is read for each of three comparisons")
@pytest.mark.usefixtures("without_figures")
def test_text_shows_what_fires_together_and_what_is_missed_without_it(cli: Cli, small: list[str]) -> None:
    trained = cli(*small, "seed=1,2", "init.shared=true", "tracking=none", "sweep=x", "optimizer.lr=0.01")
    assert trained.code == 0, trained.err
    sweep = Path("multirun/x")
    runs = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    text = ["matching.tokens=600", "matching.nulls=[tokens]", "matching.undertrained=1", "tracking=none"]
    result = cli("task=match", "sweep=x", *text)
    assert result.code == 0, result.err
    by_key = rows(sweep / "analysis/matching/measures_by_key.csv")
    assert {row["chance"] for row in by_key} == {"tokens"}
    assert all(0 < float(row["null"]) < 1 for row in by_key if row["measure"] == "mmcs")
    losses = rows(sweep / "analysis/families/ablations.csv")
    assert {row["run"] for row in losses} == {run.name for run in runs}
    for run in runs:
        of_run = {row["removed"]: row for row in losses if row["run"] == run.name}
        assert float(of_run["nothing"]["increase"]) == 0
        active = sum(float(of_run[name]["density"]) for name in ("orphans", "shared") if name in of_run)
        assert active == pytest.approx(16, abs=0.01)  # k
    properties = {row["property"] for row in rows(sweep / "analysis/families/unmatched.csv")}
    assert {"density", "mean activation", "drift from the start", "direct logit effect"} <= properties

    pair = cli("task=match", f"a={runs[0]}", f"b={runs[1]}", *text)
    assert pair.code == 0, pair.err
    assert "Pearson" in pair.out
    (folder,) = Path("multirun/matched").iterdir()
    partners = pq.read_table(folder / "correlation.parquet").to_pylist()
    assert {row["sae"] for row in partners} == {"a", "b"}
    assert all(row["pearson"] is None or -1e-6 <= row["pearson"] <= 1 + 1e-6 for row in partners)
    same = cli("task=match", f"a={runs[0]}", f"b={runs[0]}", *text, "sweep=same")
    assert same.code == 0, same.err
    assert "pairs that are mutual nearest neighbours by decoder" in " ".join(same.out.split())
    (itself,) = Path("multirun/same").iterdir()
    for row in pq.read_table(itself / "correlation.parquet").to_pylist():
        assert row["jaccard"] is None or row["jaccard"] == 1
    losses = rows(itself / "ablations.csv")
    assert {row["run"] for row in losses} == {f"{side}_{runs[0].name}" for side in "ab"}
    assert {row["removed"] for row in losses} == {"nothing", "shared"}


@pytest.mark.slow(reason="four SAEs are trained on synthetic activations, from a cache")
@pytest.mark.usefixtures("without_figures")
def test_synthetic_activations_are_cached_trained_on_and_recovered(cli: Cli, tmp_path: Path) -> None:
    words = [
        *("experiment=synthetic", "seed=42,49", "tokens=200_000", "evaluation.tokens=4096", "tracking=none"),
        *("activations=cache", "activations.buffer_tokens=16_384", f"paths.cache={tmp_path / 'cache'}"),
    ]
    result = cli(*words)
    assert result.code == 0, result.err
    assert "true features found 0." in result.err
    assert "CE recovered" not in result.err
    sweep = Path("multirun/synthetic")
    truth = rows(sweep / "analysis/matching/truth.csv")
    found = [float(row["value"]) for row in truth if (row["measure"], row["of"]) == ("mmcs", "true features")]
    assert len({row["run"] for row in truth}) == 4
    assert all(value > 0.5 for value in found)  # random rows: 0.33
    assert "Truth (means over the SAEs)" in result.out
    again = cli(*words)
    assert "4 runs, 4 already done" in again.err
    analysed = cli("task=analyse", "sweep=synthetic", "analysis.tokens=2_000", "figures=none", words[-1])
    assert analysed.code == 0, analysed.err
    assert "no direct logit effects: synthetic has no final norm" in analysed.err
