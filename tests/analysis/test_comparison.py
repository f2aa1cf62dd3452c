import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from sae_sweep.analysis import COSINE_EDGES, SEVERAL, ComparisonEntry, compare, match
from sae_sweep.analysis.pairs import varied_keys
from sae_sweep.config import MatchingConfig, SaeSweepError

D_IN = 32


def random(n, seed):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def planted(seed, dataset, n=400):
    """Half of the features belong to the seed, three quarters of the rest to the dataset."""
    generator = torch.Generator().manual_seed(1000 + 10 * seed + (dataset == "b"))
    rows = torch.randn(n, D_IN, generator=generator)
    rows[:200] = random(200, seed)
    rows[200:350] = random(150, 50 + (dataset == "b"))
    return rows


@pytest.fixture
def entries():
    return [
        ComparisonEntry(
            name=f"run_{dataset}_s{seed}",
            keys={"dataset": dataset, "seed": seed},
            decoder=planted(seed, dataset),
            init_match=0.2 if (dataset, seed) == ("b", 2) else 0.01,
            densities=(torch.arange(400) >= 40).double() * 0.01,
        )
        for dataset, seed in itertools.product("ab", (1, 2))
    ]


def test_every_pair_once_with_both_directions(entries):
    comparison = compare(entries)
    assert len(comparison.rows) == 6
    for row, (a, b) in zip(comparison.rows, itertools.combinations(entries, 2), strict=True):
        result = match(a.decoder, b.decoder)
        assert (row.a, row.b) == (a.name, b.name)
        assert (row.ratio_b_in_a, row.ratio_a_in_b) == (result.ratio_b_in_a, result.ratio_a_in_b)
        assert row.ratio_b_in_a_low <= row.ratio_b_in_a <= row.ratio_b_in_a_high
        assert row.ratio_a_in_b_low <= row.ratio_a_in_b <= row.ratio_a_in_b_high
        assert row.mmcs_a_to_b == pytest.approx(result.mmcs_a_to_b)
        assert (row.n_live_a, row.n_live_b) == (360, 360)
        assert row.undertrained == ("run_b_s2" in (row.a, row.b))
        i, j = comparison.names.index(row.a), comparison.names.index(row.b)
        assert comparison.ratios[i, j] == row.ratio_a_in_b
        assert comparison.ratios[j, i] == row.ratio_b_in_a
    assert np.isnan(comparison.ratios.diagonal()).all()
    assert sum(comparison.histogram) == 6 * 800


def degrees(*angles):
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in angles])


def cos(angle):
    return math.cos(math.radians(angle))


def two_in_the_plane():
    """Angles below 45.6 degrees match: first's 0 and 90 degrees with second's 20 and 100."""
    first = ComparisonEntry(
        "first",
        {"seed": 1, "dictionary": 4},
        degrees(0, 90, 180, 300),
        init_match=0.04,
        densities=torch.tensor([0.1, 0.1, 0.0, 0.1]),
    )
    second = ComparisonEntry(
        "second",
        {"seed": 1, "dictionary": 2},
        degrees(20, 100),
        init_match=0.03,
        densities=torch.tensor([0.1, 0.0]),
    )
    return first, second


def test_every_number_of_a_pair_by_hand():
    (row,) = compare(two_in_the_plane(), MatchingConfig(threshold=0.7, undertrained=0.035)).rows
    assert dataclasses.asdict(row) == {
        "a": "first",
        "b": "second",
        "varied": ("dictionary",),
        # both of b's features have a match in every resample
        "ratio_b_in_a": 1,
        "ratio_b_in_a_low": 1,
        "ratio_b_in_a_high": 1,
        # two of a's four: a resample has none, or all of them, more often than once in 40
        "ratio_a_in_b": 1 / 2,
        "ratio_a_in_b_low": 0,
        "ratio_a_in_b_high": 1,
        # a's second feature has only a dead match, its third is dead itself
        "live_ratio_b_in_a": 1,
        "live_ratio_a_in_b": pytest.approx(1 / 3),
        "mmcs_a_to_b": pytest.approx((cos(20) + cos(10) + 2 * cos(80)) / 4),
        "mmcs_b_to_a": pytest.approx((cos(20) + cos(10)) / 2),
        "n_a": 4,
        "n_b": 2,
        "n_live_a": 3,
        "n_live_b": 1,
        "init_match_a": 0.04,
        "init_match_b": 0.03,
        "undertrained": True,
        "mixed": False,
        "inherited": False,
    }


def test_a_pair_is_undertrained_if_either_sae_is_above_the_limit():
    first, second = two_in_the_plane()
    (swapped,) = compare([second, first], MatchingConfig(undertrained=0.035)).rows
    assert swapped.undertrained
    assert not compare([first, second], MatchingConfig(undertrained=0.04)).rows[0].undertrained


@pytest.mark.parametrize(("first", "second", "inherited"), [("", "", 0), ("a", "", 1), ("", "a", 0)])
def test_what_fine_tuned_saes_share_counts_as_little_as_what_undertrained_ones_do(first, second, inherited):
    pair = two_in_the_plane()  # the first matches its start to 0.04, the second to 0.03
    pair = [dataclasses.replace(one, start=start) for one, start in zip(pair, (first, second), strict=True)]
    found = compare(pair, MatchingConfig(undertrained=0.035))
    assert found.rows[0].undertrained
    assert found.rows[0].inherited == bool(inherited)
    assert found.starts == (first, second)
    assert [(one.undertrained, one.inherited, one.trained) for one in found.summaries] == [
        (1, inherited, False)
    ]


def test_a_pair_is_mixed_if_either_sae_is(entries):
    comparison = compare([dataclasses.replace(entry, mixed="b_s1" in entry.name) for entry in entries])
    assert comparison.mixed == (False, False, True, False)
    for row in comparison.rows:
        assert row.mixed == ("run_b_s1" in (row.a, row.b))
    assert {summary.key: summary.mixed for summary in comparison.summaries} == {
        "dataset": 1,
        "seed": 0,  # its mixed pair is undertrained, and left out
        SEVERAL: 1,
    }
    assert [contrast.mixed for contrast in comparison.contrasts] == [1]
    alone = compare(entries)
    assert not any((*alone.mixed, *(one.mixed for one in (*alone.rows, *alone.summaries, *alone.contrasts))))


def test_every_number_of_a_comparison_by_hand():
    first, second = two_in_the_plane()
    comparison = compare([first, second])
    assert (comparison.names, comparison.sizes) == (("first", "second"), (4, 2))
    assert comparison.init_matches == (0.04, 0.03)
    assert comparison.keys == (first.keys, second.keys)
    np.testing.assert_array_equal(comparison.ratios, [[np.nan, 0.5], [1, np.nan]])
    bins = {edge: count for edge, count in zip(COSINE_EDGES, comparison.histogram, strict=False) if count}
    assert bins == {0.16: 2, 0.92: 2, 0.98: 2}  # cosines of 80, 20 and 10 degrees, once for each side


def test_summary_says_which_key_moves_most(entries):
    comparison = compare(entries, MatchingConfig(undertrained=0.2))
    assert [summary.key for summary in comparison.summaries] == ["seed", "dataset", SEVERAL]
    seed, dataset, several = comparison.summaries
    assert (seed.pairs, dataset.pairs, several.pairs) == (2, 2, 2)
    assert seed.values == ("1", "2")
    assert dataset.values == ("a", "b")
    # only the dataset differs: the 200 planted features of the seed remain; only the seed: 150 of the dataset
    assert dataset.ratio == pytest.approx(0.5, abs=0.02)
    assert seed.ratio == pytest.approx(0.375, abs=0.02)
    assert several.ratio == pytest.approx(0, abs=0.02)
    assert [one.undertrained for one in comparison.summaries] == [0, 0, 0]
    assert dataset.live_ratio == pytest.approx(160 / 360, abs=0.02)
    (contrast,) = comparison.contrasts
    assert (contrast.key, contrast.other) == ("dataset", "seed")
    assert contrast.difference == pytest.approx(dataset.ratio - seed.ratio)
    assert 0 < contrast.low < contrast.difference < contrast.high
    for summary in comparison.summaries:
        assert summary.low <= summary.ratio <= summary.high
        assert summary.lowest <= summary.ratio <= summary.highest
        assert sum(summary.histogram) == summary.pairs * 800


def test_interval_of_a_mean_keeps_pairs_that_share_an_sae_together():
    """Three SAEs that share one half: all pairs rest on the same features, so averaging gains nothing."""
    shared = random(100, 0)
    entries = [
        ComparisonEntry(f"s{seed}", {"seed": seed}, torch.cat([shared, random(100, seed)]), 0.0)
        for seed in (1, 2, 3)
    ]
    comparison = compare(entries)
    (summary,) = comparison.summaries
    one = comparison.rows[0]
    # each of three SAEs is drawn on its own: 1 / sqrt(3) of the width of one direction, not 1 / sqrt(6)
    width = (one.ratio_a_in_b_high - one.ratio_a_in_b_low) / 3**0.5
    assert summary.high - summary.low == pytest.approx(width, rel=0.15)


def test_only_equal_widths_are_compared():
    entries = [
        ComparisonEntry("wide", {"layer": 1}, torch.eye(3), 0.0),
        ComparisonEntry("narrow", {"layer": 2}, torch.eye(2), 0.0),
        ComparisonEntry("wide2", {"layer": 3}, torch.eye(3), 0.0),
    ]
    calls = []
    comparison = compare(entries, progress=lambda done, total: calls.append((done, total)))
    assert [(row.a, row.b) for row in comparison.rows] == [("wide", "wide2")]
    assert np.isnan(comparison.ratios[0, 1])
    assert comparison.ratios[0, 2] == 1
    assert comparison.rows[0].live_ratio_a_in_b is None
    assert comparison.summaries[0].live_ratio is None
    assert calls == [(1, 1)]


def test_one_sae_gives_an_empty_comparison():
    comparison = compare([ComparisonEntry("only", {}, torch.eye(3), 0.0)])
    assert comparison.rows == comparison.summaries == comparison.contrasts == ()
    assert sum(comparison.histogram) == 0


def test_thresholds_come_from_the_config(entries):
    comparison = compare(entries, MatchingConfig(threshold=0.0, undertrained=0.5))
    assert comparison.rows[0].ratio_a_in_b == 1
    assert not any(row.undertrained for row in comparison.rows)
    assert (comparison.threshold, comparison.undertrained_above) == (0.0, 0.5)


def test_varied_keys_follow_the_architecture():
    topk = {"architecture": "topk", "k": 16, "seed": 1}
    jumprelu = {"architecture": "jumprelu", "l0_coefficient": 0.001, "seed": 1}
    assert varied_keys(topk, jumprelu) == ("architecture",)
    assert varied_keys(topk, {**topk, "k": 32}) == ("k",)
    assert varied_keys({"seed": 1, "k": 16}, {"seed": 1}) == ("k",)
    assert varied_keys(topk, topk) == ()


def test_errors_name_the_runs():
    entry = ComparisonEntry("twice", {}, torch.eye(3), 0.0)
    with pytest.raises(SaeSweepError, match="twice given more than once"):
        compare([entry, entry])
    with pytest.raises(SaeSweepError, match=r"decoder b holds NaN.*\(a is twice, b is broken\)"):
        compare([entry, ComparisonEntry("broken", {}, torch.eye(3) * float("nan"), 0.0)])


def test_the_threshold_is_an_edge_of_the_histogram():
    assert 0.7 in COSINE_EDGES
    assert len(COSINE_EDGES) == 101
