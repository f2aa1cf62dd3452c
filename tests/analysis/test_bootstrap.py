import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import bootstrap_interval, bootstrap_means
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
