import numpy as np

from sae_sweep.analysis.ordering import cluster_order


def test_saes_that_share_the_most_stand_beside_each_other():
    groups = np.array([0, 1, 0, 1, 0])
    ratios = np.where(groups[:, None] == groups, 0.8, 0.1)
    order = cluster_order(ratios)
    assert sorted(order) == list(range(5))
    assert np.abs(np.diff(groups[order])).sum() == 1


def test_pairs_that_were_not_compared_share_nothing():
    ratios = np.full((4, 4), np.nan)
    ratios[0, 2] = ratios[2, 0] = ratios[1, 3] = ratios[3, 1] = 0.5
    order = cluster_order(ratios)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_one_or_two_stay_as_they_are():
    assert cluster_order(np.full((1, 1), np.nan)) == [0]
    assert cluster_order(np.full((2, 2), 0.3)) == [0, 1]


def test_nothing_is_moved_where_all_shares_are_equal():
    assert cluster_order(np.full((6, 6), 0.3)) == list(range(6))
    assert cluster_order(np.full((4, 4), np.nan)) == list(range(4))
