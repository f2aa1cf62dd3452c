import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.stability import overlap, seed_groups, seed_stability, span
from sae_sweep.config import SaeSweepError


def entry(name, decoder, densities=None, **keys):
    return ComparisonEntry(name, keys, decoder, 0.0, densities)


def test_features_that_come_back_are_counted_per_seed():
    eye = torch.eye(6)
    entries = [
        entry("a", eye[[0, 1, 2, 3]]),
        entry("b", eye[[1, 0, 4]]),
        entry("c", eye[[5, 0, 2]], densities=torch.tensor([0.1, 0.1, 0.0])),
    ]
    a, b, c = seed_stability(entries)
    assert a.share.tolist() == [1, 0.5, 0, 0]
    assert b.share.tolist() == [0.5, 1, 0]
    assert c.share[:2].tolist() == [0, 1]
    assert c.share[2].isnan()
    assert (a.name, a.others) == ("a", ("b", "c"))
    assert a.stable.tolist() == [True, False, False, False]
    assert a.unstable.tolist() == [False, False, True, True]
    assert not (c.stable | c.unstable)[2]


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7]))
def test_equals_the_definition(runs, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(int(n), 3, generator=generator) for n in torch.randint(1, 7, (runs,), generator=generator)
    ]
    found = seed_stability([entry(f"run{i}", one) for i, one in enumerate(rows)], threshold)
    for i, one in enumerate(rows):
        for feature in range(len(one)):
            held = 0
            for other in rows[:i] + rows[i + 1 :]:
                cosines = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=-1)
                nearest = cosines[feature].argmax()
                held += cosines[:, nearest].argmax() == feature and cosines[feature, nearest] > threshold
            assert found[i].share[feature].item() == pytest.approx(held / (runs - 1))


def test_a_damaged_dictionary_counts_as_one_that_holds_nothing():
    found = seed_stability(
        [entry("a", torch.eye(3)), entry("b", torch.zeros(3, 3)), entry("c", torch.eye(3))]
    )
    assert found[0].share.tolist() == [0.5] * 3
    assert found[1].share.isnan().all()


def test_seeds_are_compared_where_all_else_is_equal():
    rows = torch.eye(3)
    entries = [
        entry("a", rows, seed=1, k=16),
        entry("b", rows, seed=2, k=16),
        entry("c", rows, seed=1, k=32),
        entry("d", torch.ones(4, 3), seed=2, k=32),
        entry("e", rows, k=16),
        entry("f", rows, seed=3, k=16),
    ]
    assert [[one.name for one in group] for group in seed_groups(entries)] == [["a", "b", "f"]]
    assert [[one.name for one in group] for group in seed_groups(entries, "k")] == [["a", "c"]]


def test_a_span_holds_the_energy_with_the_fewest_directions():
    rows = torch.cat([torch.eye(5)[:2].repeat(9, 1), torch.eye(5)[2:3], torch.eye(5)[3:4]])  # 18 of 20 in two
    assert span(rows, 0.9).shape == (5, 2)
    assert span(rows, 0.91).shape == (5, 3)
    assert span(rows, 1.0).shape == (5, 4)
    assert span(rows[:0]).shape == (5, 0)
    basis = span(random_rows(50, 8, 0))
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


def test_principal_angles_of_planes_at_a_known_angle():
    angle = math.radians(30)
    a = torch.eye(4)[:2]
    b = torch.tensor([[1.0, 0, 0, 0], [0, math.cos(angle), math.sin(angle), 0]])
    found = overlap(a, b, energy=1.0)
    assert (found.rank_a, found.rank_b) == (2, 2)
    assert found.angles.tolist() == pytest.approx([0, 30], abs=1e-3)
    expected = (1 + math.cos(angle) ** 2) / 2
    assert (found.overlap, found.a_in_b, found.b_in_a) == pytest.approx((expected,) * 3)
    assert (found.random, found.random_a_in_b, found.random_b_in_a) == (0.5, 0.5, 0.5)
    assert found.random_low < 0.5 < found.random_high
    assert math.isnan(found.tokens)


def test_random_directions_overlap_as_random_subspaces_and_those_of_one_span_more():
    found = overlap(random_rows(12, 60, 0), random_rows(20, 60, 1), draws=40)
    assert found.random_low - 0.05 <= found.overlap <= found.random_high + 0.05
    assert found.random == pytest.approx(found.rank_b / 60)
    mix = random_rows(6, 60, 2)
    common = overlap(random_rows(40, 6, 3) @ mix, random_rows(40, 6, 4) @ mix, energy=1 - 1e-9)
    assert common.overlap == pytest.approx(1, abs=1e-4)
    assert common.a_in_b == pytest.approx(1, abs=1e-4)
    assert common.random_high < 0.3


def test_spans_of_the_data_stand_beside():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200, 5, generator=generator) @ torch.randn(5, 30, generator=generator)
    found = overlap(random_rows(20, 30, 0), random_rows(20, 30, 1), 1 - 1e-6, residuals=data)
    assert found.tokens == pytest.approx(1, abs=1e-3)
    few = overlap(random_rows(20, 30, 0), random_rows(20, 30, 1), residuals=data[:39])
    assert math.isnan(few.tokens)


def test_no_rows_have_no_overlap():
    found = overlap(torch.empty(0, 4), random_rows(3, 4, 0))
    assert (found.rank_a, found.b_in_a, len(found.angles)) == (0, 0, 0)
    assert math.isnan(found.overlap)
    assert math.isnan(found.a_in_b)
    assert math.isnan(found.random)


def test_refuses_one_sae_and_other_widths():
    with pytest.raises(SaeSweepError, match="at least 2 seeds"):
        seed_stability([entry("a", torch.eye(3))])
    with pytest.raises(SaeSweepError, match="rows of 3 and 4 entries"):
        seed_stability([entry("a", torch.eye(3)), entry("b", torch.eye(4))])
