import dataclasses

import pytest
from matplotlib.text import Text

from sae_sweep.study.answers import dataset_or_seed
from sae_sweep.study.figures import figure1, figure13, table1_figure, table2_figure
from sae_sweep.study.files import write_answers, write_study_tables
from sae_sweep.study.labels import StudySetup
from sae_sweep.study.markdown import answers_markdown, table1_markdown
from sae_sweep.study.shares import Shares
from sae_sweep.study.tables import study_tables
from tests.study.helpers import read_csv
from tests.study.study_runs import all_runs

PNG = b"\x89PNG"
SETUP = StudySetup(
    "paper", "shared starts", ("gpt2-pico",), {"owt": "library_docs"}, 6.0, (1_000_000, 2_000_000)
)


@pytest.fixture(scope="module")
def runs():
    """One SAE of the baseline's block is missing; layers 0 and 1, and one seed, are undertrained."""
    runs = [run for run in all_runs() if run.dataset != "pile"]
    return [
        dataclasses.replace(run, init_match=0.5) if (run.seed, run.dictionary, run.k) == (42, 4, 16) else run
        for run in runs
    ]


@pytest.fixture(scope="module")
def tables(runs):
    return study_tables(runs, Shares())


@pytest.fixture(scope="module")
def files(tmp_path_factory, tables):
    root = tmp_path_factory.mktemp("study")
    return write_study_tables(root / "tables", root / "figures", tables, SETUP)


def test_every_table_is_there_as_csv_and_markdown_and_every_figure(files):
    names = {path.name for path in files.table1.parent.iterdir()}
    assert names == {
        f"{stem}.{kind}"
        for stem in ("table1", "table2", "figure13_k16", "figure13_k32")
        for kind in ("csv", "md")
    }
    figures = sorted(files.figure1.parent.iterdir())
    assert [path.name for path in figures] == ["figure1.png", "figure13.png", "table1.png", "table2.png"]
    assert all(path.read_bytes()[:4] == PNG for path in figures)


def test_csv_says_what_was_compared_and_how_it_differs(files, tables):
    stored = read_csv(files.table1)
    assert len(stored) == 35
    for row, result in zip(stored, tables.table1, strict=True):
        if result.measured is None:
            assert row["measured_percent"] == ""
            assert "pile" in row["missing"]
            continue
        assert float(row["measured_percent"]) == 100 * result.measured.ratio
        assert float(row["difference_points"]) == result.difference
        assert (row["counted_run"], row["sought_in_run"]) == (result.counted.name, result.sought_in.name)
        assert int(row["n"]) == len(result.counted.decoder())
        assert row["undertrained"] == str(result.undertrained)
    copied = next(row for row in stored if (row["row"], row["column"]) == ("3072", "tinystories"))
    assert (copied["published_percent"], copied["footnotes"]) == ("71.37", "a")
    assert copied["undertrained"] == "True"
    assert len(read_csv(files.figure13[0])) == 66


def test_markdown_carries_footnotes_choices_and_what_is_missing(files):
    text = files.table1.with_suffix(".md").read_text()
    line = next(line for line in text.splitlines() if "x4" in line and "71.37" in line)
    assert "71.37[^a]" in line
    assert "†" in line
    assert "\n[^a]: 71.37 % is printed" in text
    assert "no run: topk x16 k=16, pile, layer 8, seed 49" in text
    assert "Published: SAE Dataset Sensitivity in Feature Matching" in text
    assert "Position Features, 2025-02-26.\n" in text
    assert "OpenWebText is library_docs" in text
    assert "times 6" in text
    assert "1,000,000 to 2,000,000 tokens" in text
    assert "Chosen where the study leaves it open" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows[:37]}) == 1
    second = files.table2.with_suffix(".md").read_text()
    assert "332[^f]" in second
    assert second.count("does not follow") == 3
    assert second.count("printed: truncated") == 1
    matrix = files.figure13[1].with_suffix(".md").read_text().splitlines()
    first = next(line for line in matrix if line.startswith("|   1 |"))
    assert first.count("†") == 1


def test_table2_says_what_it_compares(files, tables):
    for row, result in zip(read_csv(files.table2), tables.table2, strict=True):
        assert (row["large_run"], row["small_run"]) == (result.large.name, result.small.name)
        assert (int(row["n_large"]), int(row["n_small"])) == (result.measured.large, result.measured.small)
        assert float(row["live_features"]) == pytest.approx(result.measured.features)  # all of them live
        assert float(row["difference_features"]) == result.measured.features - result.printed
        assert float(row["init_match_large_percent"]) == 2
        assert row["choice"] == result.choice != ""
    text = files.table2.with_suffix(".md").read_text()
    first, result = next(line for line in text.splitlines() if line.startswith("| x4")), tables.table2[0]
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[4] == f"{result.measured.live:,.0f}"
    assert cells[7] == f"{result.difference:+,.0f}"
    assert cells[9:] == ["384 / 96", "2.0 / 2.0", ""]
    assert f"| table2/3072-12288/owt         | `{result.large.name}`" in text
    assert f"- {result.choice}" in text


@pytest.fixture(scope="module")
def mixed(runs):
    """The same runs; one of two seeds that is undertrained, one that is not, and layer 5 are mixed."""
    of_layer_8 = {("owt", 4, 42, 16), ("tinystories", 16, 49, 16)}
    return [
        dataclasses.replace(
            run,
            mixed=run.layer == 5
            or (run.layer == 8 and (run.dataset, run.dictionary, run.seed, run.k) in of_layer_8),
        )
        for run in runs
    ]


@pytest.fixture(scope="module")
def mixed_tables(mixed):
    return study_tables(mixed, Shares())


def test_every_table_marks_mixed_cells(tmp_path, files, mixed_tables):
    written = write_study_tables(tmp_path, tmp_path, mixed_tables, SETUP)
    kinds = [(written.table1, mixed_tables.table1), (written.table2, mixed_tables.table2)]
    kinds += zip(written.figure13, mixed_tables.figure13.values(), strict=True)
    for path, results in kinds:
        assert [row["mixed"] for row in read_csv(path)] == [str(result.mixed) for result in results]
        text = path.with_suffix(".md").read_text()
        assert any(result.mixed for result in results)
        table, notes = text.split("‡ mixed: part of the run was trained with other numerics")
        assert table.count("‡") == sum(result.mixed for result in results)
        assert notes.count("‡") == 0 if path in written.figure13 else notes.count("` ‡ |") > 0
    for path in (files.table1, files.table2, *files.figure13):
        assert "‡" not in path.with_suffix(".md").read_text()
        assert {row["mixed"] for row in read_csv(path)} == {"False"}
    text = written.table1.with_suffix(".md").read_text()
    assert "] †‡ |" in text
    assert "] ‡ |" in text
    assert "| `topk x4 k=16, owt, layer 8, seed 42` ‡ |" in text
    later = written.figure13[0].with_suffix(".md").read_text().split("\n|   5 |")[1].splitlines()[0]
    assert [cell.strip()[4:] for cell in later.split("|")[:6]] == ["†‡", "†‡", "‡", "‡", "‡", ""]


def test_every_figure_marks_mixed_cells(tables, mixed_tables):
    (axes,) = table1_figure(mixed_tables, SETUP).axes
    marks = [text.get_text() for text in axes.texts]
    assert marks.count("†‡") == 1
    assert marks.count("‡") + 1 == sum(result.mixed for result in mixed_tables.table1)
    (axes,) = table2_figure(mixed_tables, SETUP).axes
    assert [text.get_text() for text in axes.texts] == ["‡"] * sum(row.mixed for row in mixed_tables.table2)
    (axes,) = figure1(mixed_tables, SETUP).axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert "seed\n6 of 6 cells, 2 †, 2 ‡" in labels
    panels = figure13(mixed_tables, SETUP).axes[:2]
    for panel, results in zip(panels, mixed_tables.figure13.values(), strict=True):
        texts = [text.get_text() for text in panel.texts]
        assert sum(text.endswith("‡") for text in texts) == sum(result.mixed for result in results) < 66
    for draw in (table1_figure, table2_figure, figure1, figure13):
        notes = [text.get_text() for text in draw(mixed_tables, SETUP).legends[0].get_texts()]
        assert notes[-1].startswith("‡ mixed: part of the run was trained with other numerics")
        assert not any("‡" in text.get_text() for text in draw(tables, SETUP).findobj(Text))


def test_answers_mark_mixed_pairs(tmp_path, mixed, mixed_tables):
    path = write_answers(tmp_path, dataset_or_seed(mixed, Shares(), sweep="paper"), mixed_tables)
    counts = [(row["mixed_dataset_pairs"], row["mixed_seed_pairs"]) for row in read_csv(path)]
    assert counts[:2] == [("0", "0"), ("2", "1")]
    text = path.with_suffix(".md").read_text()
    assert "| the dataset moves more features ‡ " in text
    assert "| 3 of 5 pairs mixed; missing: " in text
    assert "\n‡ mixed: part of the run was trained with other numerics" in text


def test_runs_that_differ_in_more_are_said_in_every_table(tmp_path, runs):
    odd = [dataclasses.replace(run, tokens=7) if run.dictionary == 16 else run for run in runs]
    odd = [dataclasses.replace(run, name=f"pico_L{run.layer}_k{run.k}_s49") for run in odd if run.seed == 49]
    odd = [dataclasses.replace(run, tokens=9) if run.layer == 3 else run for run in odd]
    files = write_study_tables(tmp_path, tmp_path, study_tables(odd), SETUP)
    text = files.table1.with_suffix(".md").read_text()
    assert "the runs differ in tokens 7 / 100,000 |" in text
    assert any(row["differs"] == "tokens 100,000 / 7" for row in read_csv(files.table1))
    second = files.table2.with_suffix(".md").read_text()
    assert "printed: does not follow; the runs differ in tokens 7 / 100,000 |" in second
    matrix = files.figure13[0].with_suffix(".md").read_text()
    assert "- `pico_L*_k16_s49`\n" in matrix
    assert "`figure13_k16.csv` has" in matrix
    assert "- tokens 9 / 7: 3\n" in matrix
    assert "- tokens 7 / 9: 8\n" in matrix


def test_another_threshold_is_said(tables):
    assert "The study's threshold" not in table1_markdown(tables, SETUP)
    assert "The study's threshold is 0.7" in table1_markdown(
        dataclasses.replace(tables, threshold=0.9), SETUP
    )


def test_answers_are_written(tmp_path, runs, tables):
    answers = dataset_or_seed(runs, Shares(), sweep="paper")
    path = write_answers(tmp_path, answers, tables)
    stored = read_csv(path)
    assert [row["way"] for row in stored] == ["published", "as in the study", "controlled", "controlled"]
    assert float(stored[1]["difference_points"]) == pytest.approx(100 * answers[1].difference)
    text = path.with_suffix(".md").read_text()
    assert "-38.0" in text
    assert "missing: two runs that differ only in the dataset" in text
    assert "shared starts: 11 settings (dataset_vs_seed.csv names them)" in text
    assert "left out, with one kind of pair only: 2" in text
    assert stored[3]["settings"].startswith("topk x4 k=32, layer 8, 100,000 tokens; ")


def test_few_settings_are_named(runs, tables):
    answers = dataset_or_seed([run for run in runs if run.dictionary == 4 and run.k == 16], Shares())
    text = answers_markdown(answers, tables)
    assert "starts: 1 setting (topk x4 k=16, layer 8, 100,000 tokens)\n" in text


def test_figures_mark_what_is_undertrained_and_what_is_missing(tables):
    (axes,) = table1_figure(tables, SETUP).axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[:2] == ["dataset", "TinyStories - RedPajama"]
    assert sum(text.get_text() == "†" for text in axes.texts) == 2
    left, right, bar = figure13(tables, SETUP).axes
    assert (len(left.texts), len(right.texts)) == (66, 66)
    assert sum(patch.get_hatch() is not None for patch in left.patches) == 11 + 10
    assert "matched" not in bar.get_ylabel()
    assert "features with a match (%)" in bar.get_ylabel()
    (settings,) = figure1(tables, SETUP).axes
    assert any("3 of 5 cells" in tick.get_text() for tick in settings.get_yticklabels())
    legend = table2_figure(tables, SETUP).legends[0]
    assert "OpenWebText (here library_docs)" in [text.get_text() for text in legend.get_texts()]


def test_without_any_run_the_published_side_is_drawn(tmp_path):
    files = write_study_tables(tmp_path, tmp_path, study_tables([]), StudySetup("empty"))
    assert all(row["missing"] for row in read_csv(files.table1))
    assert files.figure13_figure.read_bytes()[:4] == PNG
