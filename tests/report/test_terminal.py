import dataclasses
import math

import numpy as np
import pytest

from sae_sweep.analysis import KeyContrast
from sae_sweep.analysis.position_table import PositionRow
from sae_sweep.report import RunLine, files_text, position_text, terminal_summary

METRICS = {"explained_variance": 0.7234, "ce_recovered_zero": 0.951, "l0": 16.04, "alive": 75.0, "dead": 25.0}


def runs(comparison):
    done = [
        RunLine(name, "done", 2_000_000, METRICS, match, mixed)
        for name, match, mixed in zip(
            comparison.names, comparison.init_matches, comparison.mixed, strict=True
        )
    ]
    return [*done, RunLine("pico_L6_docs_topk_s3", "failed")]


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def test_runs_show_what_they_reached(comparison):
    text = terminal_summary(runs(comparison), comparison, width=120)
    assert row(text, "pico_L6_docs_topk_s1")[1:] == ["2M", "0.723", "0.951", "16.0", "75.0%", "2.0%", "done"]
    assert row(text, "pico_L6_docs_topk_s2")[6] == "25.0%*"
    assert row(text, "pico_L6_docs_topk_s3")[1:] == ["-"] * 6 + ["failed"]
    assert "* undertrained: init above 10%" in text


def test_a_fine_tuned_run_stands_beside_the_sae_that_it_started_from():
    tuned = METRICS | {"start_explained_variance": 0.5, "start_explained_variance_rare": 0.25}
    tuned |= {"explained_variance_rare": 0.4, "start_ce_recovered_zero": math.nan}
    lines = [RunLine("tuned", "done", 1_000, tuned, 0.05), RunLine("drawn", "done", 1_000, METRICS, 0.05)]
    text = terminal_summary(lines, width=120)
    assert row(text, "run")[2:5] == ["expl.var", "rare", "CE"]
    assert row(text, "tuned")[2:5] == ["0.500→0.723", "0.250→0.400", "-→0.951"]
    assert row(text, "drawn")[2:5] == ["0.723", "-", "0.951"]
    assert "a→b: a is of the SAE that the run is fine-tuned from" in text
    assert "rare" not in terminal_summary(lines, width=40)
    assert "→" not in terminal_summary(lines[1:], width=120)


def test_only_columns_that_are_shown_are_explained(comparison):
    assert "CE rec.: cross-entropy" in terminal_summary(runs(comparison), comparison, width=120)
    narrow = terminal_summary(runs(comparison), comparison, width=40)
    assert "expl.var: R²" in narrow
    assert "CE rec." not in narrow


def test_keys_stand_with_interval_and_contrast(comparison):
    text = terminal_summary(runs(comparison), comparison, width=120)
    seed, dataset = (next(s for s in comparison.summaries if s.key == key) for key in ("seed", "dataset"))
    interval = [f"{100 * seed.low:.1f}", "to", f"{100 * seed.high:.1f}"]
    assert row(text, "seed")[1:8] == ["1", "of", "2", f"{seed.ratio:.1%}", *interval]
    assert row(text, "dataset")[4] == f"{dataset.ratio:.1%}"
    (contrast,) = comparison.contrasts
    assert (
        f"Changing dataset moves more features than changing seed: {100 * contrast.difference:.1f} points"
        in text
    )
    assert "may be chance" not in text


def test_mixed_runs_and_what_depends_on_them_are_marked(comparison, mixed_comparison):
    text = terminal_summary(runs(mixed_comparison), mixed_comparison, width=120)
    assert [row(text, f"pico_L6_{name}")[-1] for name in ("docs_topk_s1", "sources_topk_s1")] == [
        "done",
        "done†",
    ]
    assert "† mixed: part of the run was trained with other numerics (device, dtype" in text
    assert [row(text, key)[1:4] for key in ("dataset", "seed")] == [["1", "of", "2†"]] * 2
    assert "† with mixed runs" in text
    assert " ".join(text.split()).count(").†") == 1  # the sentence that sets two keys against each other
    assert row(text, "%")[1:] == ["1", "2", "3†", "4", "start"]
    assert " 3 sources seed 1†" in text
    alike = terminal_summary(runs(comparison), comparison, width=120)
    assert "†" not in alike
    assert "mixed" not in alike
    other = terminal_summary([RunLine("only", "running", 1, mixed=True)])
    assert row(other, "only")[-1] == "running†"
    assert "† mixed: " in other


def test_the_mark_stays_where_names_are_cut(mixed_comparison):
    text = terminal_summary(runs(mixed_comparison), mixed_comparison, width=60)
    assert all(len(line) <= 60 for line in text.splitlines())
    (matrix_row,) = (line for line in text.splitlines() if line.startswith(" 3 "))
    assert matrix_row.split("†")[0].endswith("1")
    assert "done†" in text


def test_an_interval_that_holds_zero_is_said_to_be_chance(comparison):
    unsure = dataclasses.replace(comparison, contrasts=(KeyContrast("seed", "dataset", 0.01, -0.02, 0.04),))
    text = terminal_summary(runs(comparison), unsure, width=120)
    assert "1.0 points fewer match (95% interval -2.0 to 4.0), which may be chance." in " ".join(text.split())


def test_matrix_reads_row_in_column(comparison):
    lines = terminal_summary(runs(comparison), comparison, width=120).splitlines()
    first = next(line for line in lines if line.startswith(" 1 docs seed 1"))
    share = comparison.ratios[0]
    expected = [".", f"{100 * share[1]:.0f}*", f"{100 * share[2]:.0f}", f"{100 * share[3]:.0f}", "2"]
    assert first.split()[-5:] == expected


def test_the_matrix_is_text_only_where_its_columns_fit(comparison):
    count = 73
    many = dataclasses.replace(
        comparison,
        names=tuple(f"run_{i}" for i in range(count)),
        keys=tuple({"seed": i} for i in range(count)),
        ratios=np.full((count, count), 0.5),
        init_matches=(0.0,) * count,
        mixed=(False,) * count,
        starts=("",) * count,
    )
    assert "column" not in terminal_summary(runs(comparison), many, width=120)
    wide = terminal_summary(runs(comparison), many, width=500)
    assert row(wide, "%")[-2:] == ["73", "start"]
    assert all(len(line.split()) == 4 + 73 - 1 + 1 for line in wide.splitlines() if " seed " in line[:10])


def all_undertrained(comparison):
    """The comparison of a sweep whose runs all still match their start."""
    summaries = [dataclasses.replace(one, undertrained=one.pairs) for one in comparison.summaries]
    return dataclasses.replace(
        comparison, summaries=tuple(summaries), contrasts=(), init_matches=(1.0,) * len(comparison.names)
    )


def test_no_sentence_is_drawn_from_undertrained_runs_and_what_would_be_enough_is_said(comparison):
    none = all_undertrained(comparison)
    short = [RunLine(name, "done", 40_000, METRICS, 1.0) for name in comparison.names]
    lines = terminal_summary(short, none, width=120)
    text = " ".join(lines.split())
    assert "moves more features" not in text
    assert "What moves the features" not in text
    assert [row(lines, key)[1] for key in ("dataset", "seed")] == ["2*", "2*"]
    keys = [summary.key for summary in none.summaries if summary.key in ("dataset", "seed")]
    assert (
        f"* No conclusion about {' or '.join(keys)}: all these pairs have an undertrained run, and may match "
        "only because of what it started from. Enough would be runs whose init is at most 10%: "
        "raise tokens (they had 40k), or optimizer.lr."
    ) in text
    longer = [*short, RunLine("longer", "done", 2_000_000, METRICS, 0.02)]
    assert "raise tokens (they had 40k; 2M was enough for another run), or" in " ".join(
        terminal_summary(longer, none, width=120).split()
    )


def test_fine_tuned_runs_are_no_evidence_and_are_not_called_undertrained(comparison):
    none = all_undertrained(comparison)
    tuned = [dataclasses.replace(one, inherited=one.pairs) for one in none.summaries]
    none = dataclasses.replace(none, summaries=tuple(tuned), starts=("general",) * len(none.names))
    lines = terminal_summary(
        [RunLine(name, "done", 40_000, METRICS, 1.0, start="general") for name in none.names], none, width=120
    )
    text = " ".join(lines.split())
    assert "undertrained" not in text
    assert "moves more features" not in text
    assert row(lines, none.names[0])[6] == "100.0%‡"
    assert "‡ fine-tuned from general: init above 10%; what such runs share may come from there" in text
    assert "all these pairs have a fine-tuned run, and may match only because of what it started from" in text
    assert "raise tokens" not in text


def test_a_key_without_trained_pairs_is_in_no_sentence_while_others_are(comparison):
    seed = [
        dataclasses.replace(one, undertrained=one.pairs * (one.key == "seed")) for one in comparison.summaries
    ]
    text = " ".join(
        terminal_summary(
            runs(comparison), dataclasses.replace(comparison, summaries=tuple(seed), contrasts=()), width=120
        ).split()
    )
    assert "No conclusion about seed: " in text
    assert "moves more features" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(comparison, width):
    assert all(
        len(line) <= width
        for line in terminal_summary(runs(comparison), comparison, width=width).splitlines()
    )


def test_names_lose_what_they_share_where_space_is_short(comparison):
    text = terminal_summary(runs(comparison), comparison, width=75)
    assert row(text, "docs_s1")[0] == "docs_s1"
    assert "pico_L6" not in text


def test_nothing_to_compare(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    text = terminal_summary([RunLine("only", "failed", 1234)])
    assert row(text, "only") == ["only", "1.23k", "-", "-", "-", "-", "-", "failed"]
    assert "matched" not in text


def test_short_names_stand_where_names_do_not_fit(comparison):
    lines = [dataclasses.replace(run, short=f"short {i}") for i, run in enumerate(runs(comparison))]
    assert "\nshort 2 " in terminal_summary(lines, comparison, width=75)
    assert "short" not in terminal_summary(lines, comparison, width=140)


def test_files_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"matrix": tmp_path / "my sweep" / "matrix.png", "a failed run": tmp_path / "train.log"}
    assert files_text(files).splitlines() == [
        "Files",
        "  matrix        'my sweep/matrix.png'",
        "  a failed run  train.log",
    ]


def test_an_sae_without_live_features_has_no_share_of_position_features():
    text = position_text([PositionRow("sae", 2, "none", 0, 0, 0, math.nan, math.nan, math.nan, 5000, 40)])
    assert text.split("\n")[3].split() == ["sae", "2", "none", "0", "0", "-", "-"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_position_features_stand_with_their_intervals(width):
    rows = [
        PositionRow(
            f"gpt2-pico_L{layer}_docs", layer, change, 1000, 12, 3, 0.012, 0.008, 0.02, 5000, 40, layer == 1
        )
        for layer in (0, 1)
        for change in ("none", "zero")
    ]
    text = position_text(rows, width=width)
    assert max(map(len, text.split("\n"))) <= width
    lines = text.split("\n")
    assert lines[3].split()[:3] == ["L0", "0", "none"]
    assert "1.2%" in lines[3]
    assert ("0.8 to 2.0" in lines[3]) == (width > 40)
    assert "permuted" in text
    assert [line.count("1.2%*") for line in lines[3:7]] == [0, 0, 1, 1]
    assert "* too many features still match" in text
