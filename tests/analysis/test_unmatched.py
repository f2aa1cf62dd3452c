import math

import pytest
import torch

from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.unmatched import balanced, contrasts, drift

ORPHAN = torch.tensor([True, True, False, False, False, True])
LIVE = torch.tensor([True, True, True, True, True, False])


def test_means_of_orphans_and_shared_features_and_their_difference():
    values = torch.tensor([1.0, 3.0, 10.0, 20.0, math.nan, 99.0])
    (row,) = contrasts({"density": values}, ORPHAN, LIVE)
    assert (row.orphans.value, row.orphans.n, row.shared.value, row.shared.n) == (2, 2, 15, 2)
    assert row.difference.value == -13
    assert row.difference.low < -13 < row.difference.high
    (none,) = contrasts({"density": values}, torch.zeros(6, dtype=torch.bool), LIVE)
    assert math.isnan(none.orphans.value)
    assert math.isnan(none.difference.value)


def test_drift_is_none_for_a_feature_that_did_not_turn():
    start = random_rows(4, 8, 0)
    decoder = start.clone() * 3
    decoder[1], decoder[2] = -start[1], random_rows(1, 8, 1)[0]
    found = drift(decoder, start)
    assert found[[0, 1, 3]].tolist() == pytest.approx([0, 2, 0], abs=1e-6)
    assert found[2] == pytest.approx(1 - (start[2] * decoder[2]).sum().item(), abs=1e-6)


def test_sets_for_ablation_are_whole_and_equally_dense():
    densities = torch.tensor([0.1, 0.1, 0.05, 0.05, 0.05, 0.3])
    sets = balanced(ORPHAN, LIVE, densities)
    assert sets["orphans"].tolist() == [True, True, False, False, False, False]
    assert sets["shared"].tolist() == [False, False, True, True, True, False]
    assert torch.equal(sets["shared, equally dense"], sets["shared"])  # 0.15 in all, the sparser set
    assert int(sets["orphans, equally dense"].sum()) == 1
    assert not (sets["orphans, equally dense"] & ~sets["orphans"]).any()
    again = balanced(ORPHAN, LIVE, densities)
    assert torch.equal(again["orphans, equally dense"], sets["orphans, equally dense"])


def test_one_dense_feature_does_not_empty_a_set_of_equal_density():
    densities = torch.tensor([0.001] * 200)
    densities[150] = 0.5
    orphan = torch.arange(200) < 100
    for seed in range(5):
        sets = balanced(orphan, torch.ones(200, dtype=torch.bool), densities, seed)
        assert int(sets["shared, equally dense"].sum()) == 99
        assert int(sets["orphans, equally dense"].sum()) == 100
    none = balanced(torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool), densities)
    assert list(none) == ["shared"]
