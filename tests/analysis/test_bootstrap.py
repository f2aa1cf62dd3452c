import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import bootstrap_interval, bootstrap_means
from sae_sweep.analysis.bootstrap import estimate, estimate_difference, estimate_over_seeds
from sae_sweep.config import SaeSweepError


def test_same_seed_same_draws():
    values = torch.rand(50, 2)
    assert torch.equal(bootstrap_means(values, seed=3), bootstrap_means(values, seed=3))
    assert not torch.equal(bootstrap_means(values, seed=3), bootstrap_means(values, seed=4))


def test_interval_of_a_share_is_the_binomial_one():
    n, share = 2000, 0.3
    low, high = bootstrap_interval((torch.arange(n) < share * n).float(), resamples=4000)
    half = 1.96 * (share * (1 - share) / n) ** 0.5
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.002)


def test_columns_are_drawn_together():
    values = torch.rand(40, 1)
    draws = bootstrap_means(torch.cat([values, 1 - values, values], 1), resamples=20)
    torch.testing.assert_close(draws[:, 0] + draws[:, 1], torch.ones(20))
    assert torch.equal(draws[:, 0], draws[:, 2])


def test_memory_is_bounded_by_chunks_that_change_no_distribution(monkeypatch):
    monkeypatch.setattr("sae_sweep.analysis.bootstrap._CHUNK_ELEMENTS", 100)
    draws = bootstrap_means(torch.arange(30.0)[:, None], resamples=500)
    assert draws.shape == (500, 1)
    assert draws.mean() == pytest.approx(14.5, abs=0.4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 5))
def test_interval_lies_around_the_mean_within_the_range(values, seed):
    values = torch.tensor(values).float()
    low, high = bootstrap_interval(values, seed=seed)
    assert values.min() <= low <= values.mean() + 1e-6
    assert values.mean() - 1e-6 <= high <= values.max()


def test_refuses_nothing():
    with pytest.raises(SaeSweepError, match="no features"):
        bootstrap_interval(torch.empty(0))


def test_an_estimate_has_its_interval_and_number():
    values = torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 0])
    found = estimate(values)
    assert (found.value, found.n) == (0.625, 8)
    assert (found.low, found.high) == bootstrap_interval(values)
    nothing = estimate(values[:0])
    assert nothing.n == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)


def test_a_difference_of_other_features_is_wider_than_one_of_the_same():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator)
    others = values - 0.1
    paired = estimate_difference(values, others, paired=True)
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    apart = estimate_difference(values, others)
    half = 1.96 * (2 / 400) ** 0.5
    assert apart.value == pytest.approx(0.1, abs=1e-6)
    assert (apart.low, apart.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.03)
    assert math.isnan(estimate_difference(values, others[:0]).value)
    with pytest.raises(SaeSweepError, match="400 and 3 values cannot be paired"):
        estimate_difference(values, others[:3], paired=True)


def test_an_interval_over_seeds_takes_pairs_of_drawn_seeds():
    found = estimate_over_seeds([("1", "2"), ("1", "3"), ("2", "3")], [0.4, 0.5, 0.9])
    assert (found.value, found.n) == (pytest.approx(0.6), 3)
    # two of three seeds may be drawn alone, so that each pair is a resample of its own
    assert (found.low, found.high) == pytest.approx((0.4, 0.9))
    two = estimate_over_seeds([("1", "2")], [0.4])
    assert (two.value, two.n) == (0.4, 2)
    assert math.isnan(two.low)
    assert estimate_over_seeds([], []).n == 0


def test_pairs_of_one_seed_count_as_often_as_it_is_drawn():
    pairs, values = [(seed, seed) for seed in "abcd"], [0.1, 0.2, 0.3, 0.8]
    found = estimate_over_seeds(pairs, values)
    plain = estimate(torch.tensor(values))
    assert (found.value, found.n) == (pytest.approx(0.35), 4)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.03)
