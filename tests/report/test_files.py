import csv
import dataclasses
import json
import math

import pyarrow
import pytest
import torch
from matplotlib.text import Text
from pyarrow import parquet

from sae_sweep.analysis import ComparisonEntry, compare
from sae_sweep.config import EvaluationConfig, SaeSweepError
from sae_sweep.report import read_densities, run_figures, write_comparison, write_features
from sae_sweep.report.comparison_figures import cosine_figure, matrix_figure
from sae_sweep.report.files import write_csv
from sae_sweep.report.histogram_figures import activation_figure, density_figure, frequency_figure
from sae_sweep.report.parquet import _MARK
from sae_sweep.report.style import save
from tests.disks import fill_up

PNG = b"\x89PNG"


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def files(tmp_path_factory, comparison):
    return write_comparison(tmp_path_factory.mktemp("matching"), comparison)


def test_pairs_read_back_from_csv_and_parquet(files, comparison):
    stored = parquet.read_table(files.pairs_parquet).to_pylist()
    keys_of = dict(zip(comparison.names, comparison.keys, strict=True))
    expected = [
        {**dataclasses.asdict(row), "varied": "+".join(row.varied)}
        | {
            f"{key}_{side}": keys_of[run][key]
            for key in ("dataset", "seed")
            for side, run in (("a", row.a), ("b", row.b))
        }
        for row in comparison.rows
    ]
    assert stored == expected
    text = read_csv(files.pairs_csv)
    assert [float(row["ratio_b_in_a"]) for row in text] == [row.ratio_b_in_a for row in comparison.rows]
    assert [row["undertrained"] for row in text] == [str(row.undertrained) for row in comparison.rows]


def test_matrix_has_the_direction_row_in_column(files, comparison):
    rows = parquet.read_table(files.matrix_parquet).to_pylist()
    first, second = comparison.names[:2]
    assert rows[0]["features_of"] == first
    assert rows[0][second] == comparison.ratios[0, 1]
    assert rows[0][first] is None
    assert read_csv(files.matrix_csv)[0][first] == ""


def test_keys_and_contrasts_are_written(files, comparison):
    keys = read_csv(files.keys_csv)
    assert [row["key"] for row in keys] == [summary.key for summary in comparison.summaries]
    assert "histogram" not in keys[0]
    (contrast,) = read_csv(files.contrasts_csv)
    assert float(contrast["low"]) == comparison.contrasts[0].low


def test_every_table_says_what_is_mixed(tmp_path, files, mixed_comparison):
    written = write_comparison(tmp_path, mixed_comparison)
    name = mixed_comparison.names[2]
    pairs = [str(name in (row["a"], row["b"])) for row in read_csv(written.pairs_csv)]
    assert [row["mixed"] for row in read_csv(written.pairs_csv)] == pairs
    assert [str(row["mixed"]) for row in parquet.read_table(written.pairs_parquet).to_pylist()] == pairs
    assert [row["mixed"] for row in read_csv(written.keys_csv)] == ["1", "1", "0"]
    assert [row["mixed"] for row in read_csv(written.contrasts_csv)] == ["2"]
    assert [row["mixed"] for row in read_csv(written.matrix_csv)] == ["False", "False", "True", "False"]
    assert parquet.read_table(written.matrix_parquet)["mixed"].to_pylist() == [False, False, True, False]
    assert "mixed" not in read_csv(files.matrix_csv)[0]
    assert {row["mixed"] for row in read_csv(files.pairs_csv)} == {"False"}


def test_csv_holds_any_text_and_every_digit(tmp_path):
    rows = [
        {"text": 'of "a", b', "sure": True, "n": 1, "share": 1 / 3, "nothing": None},
        {"text": "two\nlines, ü", "sure": False, "n": None, "share": 1e-17, "nothing": None},
        {"text": "", "sure": None, "n": 2**53 + 1, "share": None, "nothing": None},
        {"text": None, "sure": None, "n": None, "share": 100.0, "nothing": None},
    ]
    stored = read_csv(write_csv(tmp_path / "a.csv", pyarrow.Table.from_pylist(rows)))
    assert [list(row) for row in stored] == [list(row) for row in rows]
    assert [row["text"] for row in stored] == [row["text"] or "" for row in rows]
    assert [row["sure"] for row in stored] == ["True", "False", "", ""]
    assert [row["n"] for row in stored] == ["1", "", "9007199254740993", ""]
    assert [row["share"] and float(row["share"]) for row in stored] == [1 / 3, 1e-17, "", 100.0]
    assert {row["nothing"] for row in stored} == {""}


def test_csv_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SaeSweepError, match=r"^cannot write .*a\.csv: File exists; move away what is in its place"
    ):
        write_csv(tmp_path / "file" / "a.csv", pyarrow.table({"a": [1]}))


def test_a_full_disk_is_one_clear_line_and_the_same_call_goes_on(small_disk, comparison, evaluation):
    writers = [
        lambda: write_csv(small_disk / "x" / "a.csv", pyarrow.table({"a": list(range(9000))})),
        lambda: write_comparison(small_disk / "x", comparison),
        lambda: write_features(small_disk / "x", "a" * 12, evaluation),
        lambda: run_figures(small_disk / "x", evaluation),
    ]
    (small_disk / "x").mkdir()
    for write in writers:
        for left in (0, 4096):
            fill_up(small_disk, left)
            with pytest.raises(SaeSweepError, match=r"^no disk space left to write [^\n]*$"):
                write()
            assert not any(path.name.startswith(".") for path in (small_disk / "x").iterdir())
    fill_up(small_disk, 2**19)
    for write in writers:
        write()


def test_figures_are_whole_and_nothing_else_lies_beside(files):
    assert files.matrix_figure.read_bytes()[:4] == PNG
    assert files.cosine_figure.read_bytes()[:4] == PNG
    assert sorted(files.pairs_csv.parent.iterdir()) == sorted(files)


def test_matrix_figure_marks_undertrained_and_writes_per_cents(comparison):
    figure = matrix_figure(comparison)
    axes, beside = figure.axes[:2]
    assert [text.get_text() for text in axes.texts][:3] == [
        f"{100 * x:.1f}" for x in comparison.ratios[0, 1:]
    ]
    # run 2 of 4 is undertrained: 3 cells in its row, 3 in its column
    assert sum(patch.get_hatch() is not None for patch in axes.patches) == 6
    assert [text.get_text() for text in beside.texts] == ["2.0", "25.0", "2.0", "2.0"]
    assert "10% of the features" in figure.legends[0].get_texts()[0].get_text()
    assert axes.get_yticklabels()[0].get_text() == "docs seed 1"


def test_figures_mark_what_is_mixed(comparison, mixed_comparison):
    figure = matrix_figure(mixed_comparison)
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels][1:3] == ["docs seed 2", "sources seed 1†"]
    undertrained, mixed = (text.get_text() for text in figure.legends[0].get_texts())
    assert undertrained.startswith("undertrained, or fine-tuned: ")
    assert mixed.startswith("† mixed: part of the run was trained with other numerics")
    (only,) = (
        matrix_figure(dataclasses.replace(mixed_comparison, init_matches=(0.0,) * 4)).legends[0].get_texts()
    )
    assert only.get_text() == mixed
    *lines, note = (text.get_text() for text in cosine_figure(mixed_comparison).legends[0].get_texts())
    assert [line.count("(1 pair†)") for line in lines] == [1, 1, 0]
    assert note == mixed
    for one in (matrix_figure(comparison), cosine_figure(comparison)):
        assert not any("†" in text.get_text() for text in one.findobj(Text))


def test_sizes_stand_at_the_labels_where_they_differ():
    entries = [ComparisonEntry(f"x{n}", {"dictionary": n}, torch.eye(8)[:n], 0.0) for n in (2, 4)]
    figure = matrix_figure(compare(entries))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["x2  n=2", "x4  n=4"]
    assert not figure.legends


def test_a_comparison_without_pairs_is_written_too(tmp_path):
    entries = [ComparisonEntry(f"L{n}", {"layer": n}, torch.eye(n), 0.0) for n in (2, 3)]
    files = write_comparison(tmp_path, compare(entries))
    table = parquet.read_table(files.pairs_parquet)
    assert len(table) == 0
    assert table.schema.field("live_ratio_a_in_b").type == "double"
    assert files.matrix_figure.exists()


def test_run_figures_and_features(tmp_path, evaluation):
    figures = run_figures(tmp_path, evaluation, name="pico")
    assert all(path.read_bytes()[:4] == PNG for path in figures)
    written = write_features(tmp_path, "a" * 12, evaluation)
    assert torch.equal(read_densities(tmp_path, "a" * 12, 30), evaluation.densities)
    table = parquet.read_table(written.statistics)
    assert table["max_activation"].to_pylist() == evaluation.max_activations.tolist()
    assert json.loads(written.histograms.read_text())["density"]["counts"] == list(
        evaluation.density_histogram.counts
    )


def test_density_figure_says_how_many_are_dead(evaluation):
    (axes,) = density_figure(evaluation, EvaluationConfig(ultra_rare=0.01), "pico").axes
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts[0].startswith(f"{evaluation.density_histogram.counts[0]} of 30 features")
    assert texts[1:] == ["ultra-rare", "dense"]


def test_frequency_figure_draws_live_features_only(evaluation):
    (axes,) = frequency_figure(evaluation, "pico").axes
    live = evaluation.densities > 0
    drawn = axes.collections[0].get_offsets()
    assert len(drawn) == live.sum()
    assert drawn[:, 1].tolist() == pytest.approx(evaluation.densities[live].tolist())
    assert f"{int(live.sum())} of 30 features" in axes.texts[0].get_text()


def test_missing_or_damaged_features_are_one_clear_line(tmp_path):
    with pytest.raises(SaeSweepError, match=r"cannot read .*statistics\.parquet.*; delete the run's folder"):
        read_densities(tmp_path, "a" * 12, 30)
    for damage in (b"damaged", b"", b"PAR1"):
        (tmp_path / "statistics.parquet").write_bytes(damage)
        with pytest.raises(SaeSweepError, match=r"cannot read .*statistics\.parquet"):
            read_densities(tmp_path, "a" * 12, 30)


def test_any_flipped_bit_and_any_cut_of_the_features_is_noticed(tmp_path, evaluation):
    file = write_features(tmp_path, "a" * 12, evaluation).statistics
    whole = file.read_bytes()
    mark = whole.index(_MARK)
    for place in range(0, len(whole), 13):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        if mark <= place < mark + len(_MARK):
            continue  # then the checksum is not found, and everything else is as it was
        for damaged in (flipped, whole[:place], whole + whole[:place] if place else whole[::-1]):
            file.write_bytes(damaged)
            with pytest.raises(SaeSweepError, match=r"cannot read .*statistics\.parquet"):
                read_densities(tmp_path, "a" * 12, 30)


@pytest.mark.parametrize(
    "column",
    [[0.5] * 29, [None] + [0.5] * 29, [math.nan] * 30, [-0.1] * 30, [1e300] * 30, ["0.5"] * 30, [1] * 30],
    ids=["another SAE's", "null", "NaN", "negative", "huge", "text", "integers"],
)
def test_densities_of_something_else_are_refused(tmp_path, column):
    parquet.write_table(pyarrow.table({"density": column}), tmp_path / "statistics.parquet")
    with pytest.raises(SaeSweepError, match=r"cannot read .*statistics\.parquet: .*densit"):
        read_densities(tmp_path, "a" * 12, 30)


def test_features_of_another_run_are_refused(tmp_path, evaluation):
    write_features(tmp_path, "b" * 12, evaluation)
    with pytest.raises(SaeSweepError, match=r"statistics\.parquet: it is of run b{12}, not a{12}; delete"):
        read_densities(tmp_path, "a" * 12, 30)


def test_features_of_an_earlier_version_without_a_checksum_are_read(tmp_path):
    parquet.write_table(pyarrow.table({"density": [0.25, 0.5]}), tmp_path / "statistics.parquet")
    assert read_densities(tmp_path, "a" * 12, 2).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("name", ["a$b$c", "$\\frac{$", "a\x1b[31mb", "中文\u202e", "a_{b}^", "\\alpha"])
def test_a_figure_shows_a_name_as_it_is(tmp_path, comparison, evaluation, name):
    figures = run_figures(tmp_path, evaluation, name=name)
    named = dataclasses.replace(comparison, names=tuple(f"{name}{i}" for i in range(4)))
    keys = tuple({**key, "dataset": f"{name}{key['dataset']}"} for key in comparison.keys)
    files = write_comparison(tmp_path, dataclasses.replace(named, keys=keys))
    for figure in (*figures, files.matrix_figure, files.cosine_figure):
        assert figure.read_bytes()[:4] == PNG


def test_a_key_that_a_run_lacks_is_an_empty_cell(tmp_path, comparison):
    keys = ({"k": 4, "x": 1}, {"k": 8, "x": "a"}, {"l0": 0.5}, {"l0": 1})
    written = write_comparison(tmp_path, dataclasses.replace(comparison, keys=keys))
    first = parquet.read_table(written.pairs_parquet).to_pylist()[1]
    found = {key: first[key] for key in ("k_a", "k_b", "x_a", "x_b", "l0_a", "l0_b")}
    assert found == {"k_a": 4, "k_b": None, "x_a": "1", "x_b": None, "l0_a": None, "l0_b": 0.5}


def test_a_log_axis_has_plain_numbers(tmp_path, evaluation):
    svg = save(activation_figure(evaluation, "a run"), tmp_path / "activations.svg").read_text("utf-8")
    assert "<!-- 0.1 -->" in svg
    assert "mathdefault" not in svg
