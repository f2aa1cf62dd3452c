"""The table of the position hypothesis, from position tests of few features."""

import dataclasses
import math

import pytest
import torch

from sae_sweep.analysis.position_table import AnalysedSAE, _either, position_rows, unshared_rows
from sae_sweep.analysis.positions import PositionTest

D = 10


def analysed(layer: int, decoder: torch.Tensor, passes=(), dead=(), positions="none") -> AnalysedSAE:
    """An SAE in which the features `passes` follow position and `dead` do not fire."""
    live = torch.ones(len(decoder), dtype=torch.bool)
    live[list(dead)] = False
    follows = torch.zeros_like(live)
    follows[list(passes)] = True
    share = follows.sum().item() / max(1, live.sum().item())
    test = PositionTest(
        follows.double(), torch.zeros(len(live)), live, follows, share, share / 2, 2 * share, 900, 30
    )
    return AnalysedSAE(f"L{layer}", layer, "k16", decoder, test, positions)


def test_the_table_has_a_row_per_layer_and_intervention():
    decoder = torch.eye(D)
    rows = position_rows(
        [
            analysed(2, decoder),
            analysed(0, decoder, passes=[1, 3], dead=[4, 5]),
            analysed(0, decoder, passes=[3, 7], dead=[8], positions="zero"),
            analysed(1, decoder, passes=[0], positions="zero"),
        ]
    )
    assert [(row.sae, row.layer, row.positions) for row in rows] == [
        ("L0", 0, "none"),
        ("L0", 0, "zero"),
        ("L1", 1, "zero"),
        ("L2", 2, "none"),
    ]
    assert [(row.live, row.position_features) for row in rows] == [(8, 2), (9, 2), (10, 1), (10, 0)]
    assert [row.remaining for row in rows] == [2, 1, None, 0]
    assert (rows[0].share, rows[0].low, rows[0].high) == (1 / 4, 1 / 8, 1 / 2)
    assert (rows[0].tokens, rows[0].sequences) == (900, 30)


def test_position_features_that_the_next_layer_lacks_are_compared_with_all():
    """Of the live features 0 to 7, the next layer lacks 0 and 1 (of position) and 5; 6 is dead there."""
    early, late = torch.eye(D, 20), torch.eye(D, 20)
    late[[0, 1, 5]] = torch.eye(20)[[10, 11, 12]]
    rows = unshared_rows(
        [analysed(4, late, dead=[6]), analysed(3, early, passes=[0, 1, 2], dead=[8, 9])], threshold=0.7
    )
    (row,) = rows
    assert (row.sae, row.next_sae, row.layer) == ("L3", "L4", 3)
    assert (row.live, row.unmatched, row.position_features, row.unmatched_position_features) == (8, 4, 3, 2)
    assert (row.share, row.unmatched_share, row.difference) == (3 / 8, 1 / 2, 1 / 8)
    assert row.low < row.difference < row.high
    assert row.threshold == 0.7


def test_a_cosine_at_the_threshold_is_no_match():
    (row,) = unshared_rows([analysed(0, torch.eye(D)), analysed(1, torch.eye(D))], threshold=1.0)
    assert row.unmatched == D


def test_the_interval_of_the_difference_is_that_of_the_features():
    """400 features, half of them unmatched; of these 30 %, of the others 10 % follow position."""
    passes = torch.cat([torch.arange(200) % 10 < 3, torch.arange(200) % 10 < 1]).nonzero()[:, 0].tolist()
    late = torch.eye(400)
    late[:200] = 0
    (row,) = unshared_rows([analysed(0, torch.eye(400), passes), analysed(1, late)])
    assert (row.difference, row.unmatched_share) == (pytest.approx(0.1), pytest.approx(0.3))
    half = 1.96 * math.sqrt(0.3 * 0.7 / 200 + 0.1 * 0.9 / 200) / 2  # of half the difference of two shares
    assert row.low == pytest.approx(0.1 - half, abs=0.007)
    assert row.high == pytest.approx(0.1 + half, abs=0.007)


def test_only_adjacent_layers_of_equal_settings_and_size_are_compared():
    one = analysed(3, torch.eye(D), passes=[1])
    for other in (
        dataclasses.replace(one, layer=5),
        dataclasses.replace(one, layer=4, settings="k32"),
        dataclasses.replace(one, layer=4, positions="zero"),
        analysed(4, torch.eye(D + 1, D)),
    ):
        assert unshared_rows([one, other]) == []
    assert len(unshared_rows([one, dataclasses.replace(one, layer=4)])) == 1


def test_without_unmatched_or_live_features_nothing_is_made_up():
    one, dead = analysed(3, torch.eye(D), passes=[1]), analysed(4, torch.eye(D), dead=range(D))
    (row,) = unshared_rows([one, dataclasses.replace(one, layer=4)])
    assert row.unmatched == 0
    assert all(math.isnan(number) for number in (row.unmatched_share, row.difference, row.low, row.high))
    assert unshared_rows([one, dead]) == []
    assert unshared_rows([dead, dataclasses.replace(one, layer=5)]) == []


@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [(False, False, False), (True, False, True), (None, True, True), (None, False, None)],
)
def test_a_comparison_is_undertrained_if_one_of_its_saes_is(early, late, expected) -> None:
    assert _either(early, late) is expected
    assert _either(late, early) is expected
