"""Every number of a summary, computed by hand from pairs whose numbers all differ."""

import dataclasses

import numpy as np
import pytest
import torch

from sae_sweep.analysis import COSINE_EDGES, SEVERAL, ComparisonEntry, PairRow
from sae_sweep.analysis.summary import summarise

RUNS = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3)]
ENTRIES = [
    ComparisonEntry(f"{dataset}{seed}", {"dataset": dataset, "seed": seed}, torch.eye(2), 0.0)
    for dataset, seed in RUNS
]
# pair: ratio a in b, ratio b in a, live a in b, live b in a, MMCS a to b, MMCS b to a, undertrained
PAIRS = {
    (0, 1): (0.50, 0.54, 0.60, 0.64, 0.71, 0.73, False),
    (0, 2): (0.20, 0.30, 0.25, 0.31, 0.41, 0.45, True),
    (0, 3): (0.10, 0.12, 0.11, 0.13, 0.30, 0.34, False),
    (0, 4): (0.40, 0.48, 0.52, 0.56, 0.61, 0.65, True),
    (1, 2): (0.08, 0.06, 0.09, 0.07, 0.24, 0.26, True),
    (1, 3): (0.26, 0.32, 0.28, 0.36, 0.47, 0.51, True),
    (1, 4): (0.62, 0.58, 0.70, 0.66, 0.80, 0.82, False),
    (2, 3): (0.56, 0.60, 0.58, 0.62, 0.75, 0.77, True),
    (2, 4): (0.04, 0.02, 0.05, 0.03, 0.20, 0.22, True),
    (3, 4): (0.14, 0.16, 0.15, 0.19, 0.32, 0.36, True),
}


def row(pair, **changes):
    i, j = pair
    a_in_b, b_in_a, live_a_in_b, live_b_in_a, a_to_b, b_to_a, undertrained = PAIRS[pair]
    values = PairRow(
        a=ENTRIES[i].name,
        b=ENTRIES[j].name,
        varied=tuple(key for key in ("dataset", "seed") if ENTRIES[i].keys[key] != ENTRIES[j].keys[key]),
        ratio_b_in_a=b_in_a,
        ratio_b_in_a_low=-1,
        ratio_b_in_a_high=2,
        ratio_a_in_b=a_in_b,
        ratio_a_in_b_low=-1,
        ratio_a_in_b_high=2,
        live_ratio_b_in_a=live_b_in_a,
        live_ratio_a_in_b=live_a_in_b,
        mmcs_a_to_b=a_to_b,
        mmcs_b_to_a=b_to_a,
        n_a=100,
        n_b=100,
        n_live_a=90,
        n_live_b=90,
        init_match_a=0.0,
        init_match_b=0.0,
        undertrained=undertrained,
    )
    return dataclasses.replace(values, **changes)


def resampled(pair, spread):
    """Evenly spaced values about the ratio; their 2.5th and 97.5th percentiles lie 0.95 of the spread off."""
    return PAIRS[min(pair), max(pair)][pair[0] > pair[1]] + spread * torch.linspace(-1, 1, 201)


def summarised(rows):
    """Summaries and contrasts; pairs that differ in the seed alone spread by 0.02, the others by 0.06."""
    draws = {
        direction: resampled(direction, 0.02 if rows[i, j].varied == ("seed",) else 0.06)
        for i, j in rows
        for direction in ((i, j), (j, i))
    }
    histograms = {}
    for number, pair in enumerate(rows):
        histograms[pair] = np.zeros(len(COSINE_EDGES) - 1, dtype=np.int64)
        histograms[pair][[number, 50]] = 2**number
    return summarise(ENTRIES, rows, draws, histograms)


def histogram_of(*numbers):
    counts = [0] * 100
    for number in numbers:
        counts[number] = 2**number
    counts[50] = sum(2**number for number in numbers)
    return tuple(counts)


def all_trained():
    return {pair: row(pair, undertrained=False) for pair in PAIRS}


def test_every_number_of_a_key_is_its_mean_over_pairs():
    summaries, _ = summarised(all_trained())
    dataset, seed, several = summaries
    # only the dataset differs in pairs (0, 2) and (1, 3): means of both directions 0.25 and 0.29
    assert (dataset.key, dataset.values, dataset.pairs, dataset.undertrained) == ("dataset", ("a", "b"), 2, 0)
    assert dataset.ratio == pytest.approx((0.25 + 0.29) / 2)
    assert (dataset.lowest, dataset.highest) == (pytest.approx(0.25), pytest.approx(0.29))
    assert dataset.live_ratio == pytest.approx((0.28 + 0.32) / 2)
    assert dataset.mmcs == pytest.approx((0.43 + 0.49) / 2)
    assert (dataset.low, dataset.high) == (pytest.approx(0.27 - 0.057), pytest.approx(0.27 + 0.057))
    assert dataset.histogram == histogram_of(1, 5)
    # only the seed differs in (0, 1), (0, 4), (1, 4) and (2, 3): 0.52, 0.44, 0.60 and 0.58
    assert (seed.key, seed.values, seed.pairs, seed.undertrained) == ("seed", ("1", "2", "3"), 4, 0)
    assert seed.ratio == pytest.approx((0.52 + 0.44 + 0.60 + 0.58) / 4)
    assert (seed.lowest, seed.highest) == (pytest.approx(0.44), pytest.approx(0.60))
    assert seed.live_ratio == pytest.approx((0.62 + 0.54 + 0.68 + 0.60) / 4)
    assert seed.mmcs == pytest.approx((0.72 + 0.63 + 0.81 + 0.76) / 4)
    assert (seed.low, seed.high) == (pytest.approx(0.535 - 0.019), pytest.approx(0.535 + 0.019))
    assert seed.histogram == histogram_of(0, 3, 6, 7)
    # both differ in the other four; they stand last, though they match least
    assert (several.key, several.values, several.pairs, several.undertrained) == (SEVERAL, (), 4, 0)
    assert several.ratio == pytest.approx((0.11 + 0.07 + 0.03 + 0.15) / 4)
    assert (several.lowest, several.highest) == (pytest.approx(0.03), pytest.approx(0.15))
    assert several.live_ratio == pytest.approx((0.12 + 0.08 + 0.04 + 0.17) / 4)
    assert several.mmcs == pytest.approx((0.32 + 0.25 + 0.21 + 0.34) / 4)
    assert (several.low, several.high) == (pytest.approx(0.09 - 0.057), pytest.approx(0.09 + 0.057))
    assert several.histogram == histogram_of(2, 4, 8, 9)


def test_a_contrast_is_the_higher_ratio_minus_the_lower_with_the_interval_of_the_difference():
    _, contrasts = summarised(all_trained())
    (contrast,) = contrasts
    assert (contrast.key, contrast.other) == ("seed", "dataset")
    assert contrast.difference == pytest.approx(0.535 - 0.27)
    # in every resample seed is 0.02 x off its ratio and dataset 0.06 x: their difference is 0.04 x off
    assert (contrast.low, contrast.high) == (pytest.approx(0.265 - 0.038), pytest.approx(0.265 + 0.038))


def test_undertrained_pairs_are_left_out_and_a_key_without_others_is_neither_ranked_nor_contrasted():
    summaries, contrasts = summarised({pair: row(pair) for pair in PAIRS})
    # the pairs of the dataset match least, but both are undertrained
    assert [one.key for one in summaries] == ["seed", "dataset", SEVERAL]
    seed, dataset, several = summaries
    assert [(one.pairs, one.undertrained, one.trained) for one in summaries] == [
        (4, 2, True),
        (2, 2, False),
        (4, 3, True),
    ]
    # trained are (0, 1) and (1, 4) of the seed, and (0, 3) of both keys
    assert seed.ratio == pytest.approx((0.52 + 0.60) / 2)
    assert (seed.lowest, seed.highest) == (pytest.approx(0.52), pytest.approx(0.60))
    assert (seed.low, seed.high) == (pytest.approx(0.56 - 0.019), pytest.approx(0.56 + 0.019))
    assert seed.histogram == histogram_of(0, 6)
    assert several.ratio == pytest.approx(0.11)
    assert dataset.ratio == pytest.approx((0.25 + 0.29) / 2)
    assert contrasts == ()


def test_one_pair_without_densities_leaves_the_live_ratio_of_its_key_unknown():
    rows = all_trained()
    rows[0, 4] = row((0, 4), live_ratio_a_in_b=None, undertrained=False)
    dataset, seed, several = summarised(rows)[0]
    assert seed.live_ratio is None
    assert dataset.live_ratio == pytest.approx(0.3)
    assert several.live_ratio == pytest.approx(0.1025)


def test_pairs_that_differ_in_no_key_are_in_no_summary():
    rows = all_trained()
    rows[2, 3] = row((2, 3), varied=())
    assert [(one.key, one.pairs) for one in summarised(rows)[0]] == [
        ("dataset", 2),
        ("seed", 3),
        (SEVERAL, 4),
    ]
