"""`task=transfer` on two SAEs that nobody trained: each is evaluated on both texts of the sweep."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sae_sweep.config import ModelConfig, SaeSweepError, TopKConfig
from sae_sweep.report import transfer_files
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.transfer_files import Transferred, home_and_away, transfer_figure, transfer_text
from sae_sweep.store import PlannedRun, SweepFolder, write_json, write_metrics
from sae_sweep.tasks import transfer as transfer_task
from sae_sweep.tasks.analysed import left_out_lines
from tests.activations.conftest import save_gpt2
from tests.conftest import Cli
from tests.report.page.reading import data
from tests.tasks.conftest import alone, write_untrained
from tests.tracking.offline import offline_runs


def test_each_cell_is_the_evaluation_of_that_sae_on_that_text(cli: Cli, two_texts: list[PlannedRun]) -> None:
    result = cli("task=transfer", "sweep=mine")
    assert result.code == 0, result.err
    rows = parquet.read_table("multirun/mine/analysis/transfer/transfer.parquet").to_pylist()
    prose, code = two_texts
    found = {(row["run"], row["read"]): row for row in rows}
    assert found.keys() == {(run, text) for run in ("prose", "code") for text in ("prose", "code")}
    for run, text in ((prose, code), (code, code)):
        expected, row = alone(run, text), found[run.name, text.name]
        assert row["trained_on"] == run.name
        assert row["dead_share"] == expected["dead"] / 128
        for name in ("explained_variance", "mse", "ce_delta", "l0", "tokens"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), (run.name, text.name, name)
    densities = parquet.read_table("multirun/mine/analysis/transfer/densities.parquet").to_pylist()
    fired = sum(row["density"] for row in densities if (row["run"], row["read"]) == ("prose", "code"))
    assert fired == pytest.approx(found["prose", "code"]["l0"])
    assert "multirun/mine/analysis/transfer/heat_maps.png" in result.out
    (section,) = json.loads(data(Path("multirun/mine/report.html"), "core"))["sections"]
    assert section["title"] == "Transfer between datasets"
    assert len(section["figures"]) == 1
    (run,) = offline_runs(Path("multirun/mine"))
    assert sum("by_the_dataset_that_is_read" in key for key in run.keys()) == 5  # noqa: SIM118 - no dict
    lost = [found[name, name]["explained_variance"] for name in ("prose", "code")]
    lost[0] -= found["prose", "code"]["explained_variance"]
    lost[1] -= found["code", "prose"]["explained_variance"]
    sent = [run.summary[f"analysis/transfer/lost_on/{text}"] for text in ("code", "prose")]
    assert sent == pytest.approx(lost)


def test_a_changed_text_and_a_lost_sae_are_a_line_each_and_cost_no_other_cell(
    cli: Cli, two_texts: list[PlannedRun]
) -> None:
    prose, code = two_texts
    Path(code.config.dataset.path, "00.txt").write_text("other")  # type: ignore[attr-defined]
    prose.folder.sae.rename("lost")
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 1
    told = [line for line in result.err.splitlines() if "is left out" in line]
    assert len(told) == 2
    assert f"prose is left out: no SAE in {prose.folder.sae}" in told[0]
    assert "code is left out: the text " in told[1]
    assert "changed after code was planned" in told[1]
    rows = parquet.read_table("multirun/mine/analysis/transfer/transfer.parquet").to_pylist()
    assert [(row["run"], row["read"]) for row in rows] == [("code", "prose")]
    (section,) = json.loads(data(Path("multirun/mine/report.html"), "core"))["sections"]
    assert "on the held-out text of prose (" in section["text"]
    assert "prose is left out: no SAE in prose/sae" in section["text"]
    assert "code is left out: the text " in section["text"]


@pytest.mark.usefixtures("without_figures")
def test_families_are_beside_the_texts_in_which_they_fire(cli: Cli, two_texts: list[PlannedRun]) -> None:
    prose, code = two_texts
    sweep = SweepFolder(prose.folder.root.parent)
    again = write_untrained(sweep, "again", replace(prose.config, seed=7))
    denser = write_untrained(sweep, "denser", replace(prose.config, architecture=TopKConfig(k=8)))
    weak = write_untrained(sweep, "weak", replace(code.config, seed=7))
    write_metrics(weak.folder, weak.run_id, {"init_match": 0.5, "explained_variance": 0.5}, {})
    runs = (*two_texts, again, denser, weak)
    write_json(sweep.plan, {"sweep": "mine", "runs": [run.record() for run in runs]})
    rows = [
        *[(0, "prose", 3), (0, "again", 4), (0, "weak", 2)],
        *[(1, "prose", 5), (1, "again", 6), (1, "code", 9)],
        *[(2, "prose", 7), (2, "denser", 8)],  # of one seed
    ]
    columns = zip(("family", "run", "feature"), zip(*rows, strict=True), strict=True)
    path = write_parquet(sweep.families / "L2" / "members.parquet", pyarrow.table(dict(columns)))
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 0, result.err
    found = parquet.read_table(sweep.family_frequency / "families.parquet").to_pylist()
    keys = ("hook", "family", "home", "other", "members", "held")
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("L2", 0, "prose", "code", 2, False),
        ("L2", 1, "prose", "code", 2, True),
    ]
    matrix = parquet.read_table(sweep.transfer / "transfer.parquet").to_pylist()
    assert {row["run"]: (row["settings"], row["undertrained"]) for row in matrix} == {
        **dict.fromkeys(("prose", "code", "again"), ("k=4", False)),
        "denser": ("k=8", False),
        "weak": ("k=4", True),
    }
    fired = {
        (row["run"], row["read"], row["feature"]): row["density"]
        for row in parquet.read_table(sweep.transfer / "densities.parquet").to_pylist()
    }
    expected = (fired["prose", "code", 3] + fired["again", "code", 4]) / 2
    assert found[0]["other_density"] == pytest.approx(expected)
    path.write_bytes(b"x")
    damaged = cli("task=transfer", "sweep=mine", "tracking=none")
    assert damaged.code == 1
    assert damaged.err.count("\n") == 1
    assert "write it again with task=match" in damaged.err


@pytest.mark.usefixtures("without_figures")
def test_saes_of_two_models_are_evaluated_through_their_own(
    cli: Cli, two_texts: list[PlannedRun], tmp_path: Path
) -> None:
    prose, code = two_texts
    model = ModelConfig(
        str(save_gpt2(tmp_path / "lm", n_embd=128, n_positions=128)), name="other", dtype="float32"
    )
    sweep = SweepFolder(prose.folder.root.parent)
    other = write_untrained(sweep, "other", replace(prose.config, model=model))
    write_json(sweep.plan, {"sweep": "mine", "runs": [run.record() for run in (prose, code, other)]})
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 0, result.err
    rows = parquet.read_table(sweep.transfer / "transfer.parquet").to_pylist()
    assert len(rows) == 6
    (row,) = (row for row in rows if (row["run"], row["read"]) == ("other", "code"))
    expected = alone(other, code)
    for name in ("explained_variance", "ce_clean", "tokens"):
        assert row[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.usefixtures("without_figures")
def test_a_stop_while_it_writes_leaves_all_files_of_one_evaluation(
    cli: Cli, two_texts: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> transfer_files.TransferFiles:
        signal.raise_signal(signal.SIGTERM)
        return transfer_files.write_transfer(*arguments)

    monkeypatch.setattr(transfer_task, "write_transfer", stopped)
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 128 + signal.SIGTERM
    assert "sae_sweep: stopped by SIGTERM; launch the same command again to resume\n" in result.err
    folder = SweepFolder(two_texts[0].folder.root.parent).transfer
    files = {path.name for path in folder.iterdir()}
    assert {"transfer.parquet", "densities.parquet", "section.json"} < files


def test_a_sweep_of_one_text_is_refused(cli: Cli, two_texts: list[PlannedRun]) -> None:
    plan = two_texts[0].folder.root.parent / "plan.json"
    write_json(plan, {"sweep": "mine", "runs": [two_texts[0].record()]})
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "have one dataset (prose), and a transfer matrix needs two" in result.err
    assert not plan.with_name("analysis").exists()


def test_what_is_left_out_for_the_same_reason_is_one_line() -> None:
    changed = {f"run {number}": SaeSweepError("the text changed") for number in range(5)}
    lines = left_out_lines({"one": SaeSweepError("its file is damaged"), **changed})
    assert lines == [
        "one is left out: its file is damaged",
        "run 0, run 1 and 3 more are left out: the text changed",
    ]


def cell(run: str, trained_on: str, read: str, variance: float, **changes: Any) -> Transferred:
    metrics = {"explained_variance": variance, "dead": 1, "l0": 2.0, "mse": 0.5}
    one = Transferred(run, {"k": 4}, trained_on, read, False, np.array([0.5, 0.0]), metrics)
    return replace(one, **changes)


def test_the_sentence_counts_trained_saes_away_from_home() -> None:
    found = [
        cell("1", "a", "a", 0.8),
        cell("1", "a", "b", 0.6),
        cell("2", "b", "b", 0.7),
        cell("2", "b", "a", 0.75),
    ]
    said = home_and_away(found)
    assert "explain 0.075 less of the variance on average (from -0.050 to 0.200; less in 1 of 2 cases" in said
    weak = [replace(one, undertrained=True) for one in found]
    assert home_and_away(weak).startswith("Nothing is concluded")


def test_rows_are_means_over_seeds_alone_and_what_is_undefined_is_not_drawn() -> None:
    seeds = [cell("1", "a", "b", 0.6), cell("2", "a", "b", 0.8), cell("3", "a", "b", 0.1, keys={"k": 8})]
    drawn = transfer_figure(seeds)
    rows = drawn.numbers.to_pylist()
    assert [(row["row"], row["saes"]) for row in rows] == [("a k4", 2), ("a k8", 1)]
    assert rows[0]["explained_variance"] == pytest.approx(0.7)
    assert [axes.get_title() for axes in drawn.figure.axes] == ["explained variance: more is better"]
    notes = " ".join(text.get_text().replace("\n", " ") for text in drawn.figure.texts)
    assert "the same in all cells: MSE (SAE input), 0.500. " in notes
    assert "L0, 2.00" in notes
    assert "ΔCE" not in notes  # it is unknown, not the same


def test_numbers_of_a_panel_have_equal_decimals_and_yellow_is_better_in_each() -> None:
    found = [
        replace(cell("1", "a", read, variance), metrics={"explained_variance": variance, "ce_delta": cost})
        for read, variance, cost in (("a", 0.8, 0.2), ("b", 0.794, 1.0))
    ]
    found = [replace(one, metrics={**one.metrics, "dead": 1}) for one in found]
    variance, cost = transfer_figure(found).figure.axes
    assert [text.get_text() for text in variance.texts] == ["0.800", "0.794"]
    assert [text.get_text() for text in cost.texts] == ["0.20", "1.00"]
    for axes in (variance, cost):
        (image,) = axes.images
        red, green, blue, _ = image.to_rgba(np.asarray(image.get_array()))[0, 0]  # at home, which is better
        assert red > 0.9, axes.get_title()
        assert blue < 0.3, axes.get_title()
        assert green > 0.8, axes.get_title()


def test_names_of_datasets_are_cut_so_that_a_terminal_shows_all_columns() -> None:
    names = [f"a_dataset_with_a_long_name_{number}" for number in range(6)]
    found = [cell(home, home, read, 0.5) for home in names for read in names]
    text = transfer_text(found, 80)
    assert max(map(len, text.splitlines())) <= 80
    (head,) = (line for line in text.splitlines() if line.startswith("trained on"))
    assert [word[-1] for word in head.split()[2:]] == list("012345")
