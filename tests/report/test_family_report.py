"""Families and measures on the terminal and in figures: what is drawn is what was found."""

import math

import pytest
import torch

from sae_sweep.analysis.correlation import correlate
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.families import find_families
from sae_sweep.analysis.family_keys import key_table
from sae_sweep.analysis.key_measures import DENSITY_EDGES
from sae_sweep.analysis.measured import Subject, measure_pairs
from sae_sweep.analysis.neighbours import nearest
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.analysis.recovery import Recovery
from sae_sweep.config import MatchingConfig
from sae_sweep.report.family_figures import counts_figure, kinds_figure, presence_figure
from sae_sweep.report.family_text import correlation_text, families_text, measures_text, recovery_text
from sae_sweep.report.measure_figures import (
    TopCosines,
    curves_figure,
    measures_figure,
    rates_figure,
    top_cosines_figure,
    undertrained_keys,
)
from sae_sweep.report.panels import write_drawn
from tests.analysis.test_correlation import codes_of, latents

WIDTH = 32
COMMON = random_rows(20, WIDTH, 900)


def entry(number, dataset, seed, init=0.0):
    own = random_rows(10, WIDTH, {"x$": 901, "y": 902}[dataset])
    rows = torch.cat([COMMON, own, random_rows(6, WIDTH, 910 + number)])
    densities = torch.logspace(-5, -0.5, len(rows))
    densities[-1] = 0
    return ComparisonEntry(f"run{number}", {"dataset": dataset, "seed": seed}, rows, init, densities)


ENTRIES = [entry(0, "x$", 1), entry(1, "x$", 2), entry(2, "y", 1), entry(3, "y", 2)]
FAMILIES = find_families(ENTRIES)
ROWS = key_table(FAMILIES)


def measured(entries=ENTRIES, **keys):
    subjects = [Subject(one, lambda: None) for one in entries]
    return measure_pairs(subjects, [(0, 1), (0, 2), (1, 3)][: len(entries)], MatchingConfig(**keys))


def test_the_table_of_families_says_what_they_depend_on():
    text = families_text(FAMILIES, ROWS, width=90)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 90
    assert lines[0].startswith("Families: features that several SAEs share (40 in 4 SAEs, the largest in 4;")
    assert any(line.split()[:4] == ["universal", "all", "SAEs", "20"] for line in lines)
    assert any(line.split()[:4] == ["only", "one", "dataset", "20"] for line in lines)
    assert "50.0% of the families live in one dataset only" in text
    assert "live in one seed only" not in text
    assert "Left out" not in text


def test_a_narrow_terminal_leaves_columns_out_and_nothing_is_concluded_from_chance():
    text = families_text(FAMILIES, [row for row in ROWS if row.key != "dataset"], width=44)
    assert max(map(len, text.splitlines())) <= 44
    assert "interval" not in text.splitlines()[3]
    assert "Families that live in one seed alone cannot be told from chance" in text.replace("\n", " ")


def test_undertrained_saes_are_counted():
    some = [*ENTRIES[:3], entry(3, "y", 2, init=0.5)]
    found = find_families(some)
    assert "Left out: 1 that still match" in families_text(found, key_table(found), width=200)


def test_measures_of_a_pair_stand_beside_their_nulls():
    found = measure_pairs(
        [Subject(one, lambda: None) for one in ENTRIES[:2]],
        [(0, 1)],
        MatchingConfig(nulls=["random", "rotated"]),
    )
    text = measures_text(found, width=90)
    ratio = next(line.split() for line in text.splitlines() if line.startswith("ratio"))
    assert ratio[1:3] == ["a", "0.833"]  # 30 of 36
    assert text.splitlines()[1].split()[-2:] == ["random", "rotated"]
    assert "mmcs: mean best cosine." in text


def test_the_truth_table_and_the_features_that_fire_together():
    row = Recovery("only", "one", 5, 4, 6, 0.8, math.nan, 7)
    text = recovery_text(measured(nulls=[]), [row], width=100)
    cells = [line.split() for line in text.splitlines()]
    assert ["only", "dataset", "one", "5", "4", "0.800", "7", "6", "nan"] in cells
    f = latents(60, 5, 0)
    together = correlation_text(correlate(codes_of(f), codes_of(f)))
    assert ["Pearson", "a", "1.000", "1.000"] in [line.split() for line in together.splitlines()]
    assert "Over 60 tokens" in together
    assert "pairs that are mutual" not in together
    first = torch.arange(2)
    some = correlation_text(correlate(codes_of(f), codes_of(f), (first, first))).replace("\n", " ")
    assert "The 2 pairs that are mutual nearest" in some
    assert "mean Pearson 1.000, mean Jaccard 1.000." in some


def test_figures_draw_the_numbers_that_they_say(tmp_path):
    kinds = kinds_figure(FAMILIES, ROWS)
    only = {(row["key"], row["kind"]): row for row in kinds.numbers.to_pylist()}
    assert only["dataset", "only"]["share"] == pytest.approx(0.5)
    assert only["", "universal"]["families"] == 20
    counts = counts_figure(FAMILIES)
    assert counts.numbers["features_in_exactly"].to_pylist()[1:] == [20, 0, 20]
    presence = presence_figure(FAMILIES)
    assert sorted(presence.numbers["run"].to_pylist()) == list(FAMILIES.runs)
    assert sum(map(sum, presence.numbers["presence"].to_pylist())) == int(FAMILIES.presence.sum())
    for name, drawn in {"kinds": kinds, "counts": counts, "presence": presence}.items():
        files = write_drawn(tmp_path, name, drawn)
        assert files.png.stat().st_size > 5000
        assert b"dataset x$" in files.svg.read_bytes() or name != "presence"


def test_curves_rates_and_measures_by_key(tmp_path):
    found = measured()
    curves = curves_figure(found.curves, 0.7).numbers.to_pylist()
    shown = [row for row in curves if row["chance"] == "" and abs(row["thresholds"] - 0.7) < 1e-4]
    rows = [row for row in found.keys if row.measure.measure == "ratio" and row.features == "all"]
    ratio = {row.key: row.measure.found.value for row in rows}
    assert {row["key"]: row["share"] for row in shown} == pytest.approx(ratio, abs=1e-6)
    assert len(shown) == 2
    rates = rates_figure(found.rates).numbers.to_pylist()
    assert {row["key"] for row in rates} == {"dataset", "seed"}
    assert sum(row["features"] for row in rates if row["key"] == "seed") == pytest.approx(1, abs=0.01)
    assert all(DENSITY_EDGES[0] < row["log10_density"] < DENSITY_EDGES[-1] for row in rates)
    drawn = measures_figure(found.keys)
    assert {row["measure"] for row in drawn.numbers.to_pylist()} == {"ratio", "mmcs", "mutual"}
    assert write_drawn(tmp_path, "measures", drawn).png.stat().st_size > 5000


def test_keys_of_undertrained_pairs_are_marked():
    late = [entry(0, "x$", 1, init=0.9), *ENTRIES[1:]]
    found = measured(late)
    assert undertrained_keys(found.keys) == {"seed"}
    legend = rates_figure(found.rates, undertrained_keys(found.keys)).figure.legends[0]
    assert {text.get_text() for text in legend.get_texts()} == {"seed (no conclusion)", "dataset"}


def test_the_four_nearest_rows_are_counted_by_rank():
    a, b = ENTRIES[0].decoder, ENTRIES[1].decoder
    pair = TopCosines("other seed", {"decoder features": nearest(a, b, 4)}, {"decoder features": 0.4})
    rows = top_cosines_figure([pair], "title").numbers.to_pylist()
    assert {row["rank"] for row in rows} == {1, 2, 3, 4}
    for rank in (1, 4):
        assert sum(row["count"] for row in rows if row["rank"] == rank) == 36
    assert sum(row["count"] for row in rows if row["rank"] == 1 and row["from"] > 0.98) == 30
