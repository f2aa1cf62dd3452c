"""Divergences of token distributions against formulas written out."""

import math

import pytest
import torch

from sae_sweep.analysis.divergence import divergence, drawn_divergence, first_divergence, frequencies, thinned

P, Q = [0.5, 0.25, 0.25], [0.125, 0.375, 0.5]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_divergences_are_those_of_the_formulas() -> None:
    found = divergence(torch.tensor(P), torch.tensor(Q))
    middle = [(a + b) / 2 for a, b in zip(P, Q, strict=True)]
    assert found.forward == pytest.approx(kl(P, Q))
    assert found.backward == pytest.approx(kl(Q, P))
    assert found.half_sum == pytest.approx((kl(P, Q) + kl(Q, P)) / 2)
    assert found.jensen_shannon == pytest.approx((kl(P, middle) + kl(Q, middle)) / 2)


def test_equal_distributions_have_none_and_disjoint_ones_infinite_or_ln_2() -> None:
    assert divergence(torch.tensor(P), torch.tensor(P)) == (0, 0, 0, 0)
    apart = divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert apart.forward == apart.backward == math.inf
    assert apart.jensen_shannon == pytest.approx(math.log(2))


def test_counts_become_shares_and_smoothed_ones_leave_no_token_impossible() -> None:
    counts = torch.tensor([3, 0, 1])
    assert frequencies(counts).tolist() == [0.75, 0, 0.25]
    assert frequencies(counts, 0.5).tolist() == pytest.approx([3.5 / 5.5, 0.5 / 5.5, 1.5 / 5.5])


def test_few_counts_of_a_distribution_itself_are_as_far_as_the_null_says() -> None:
    """And counts of another are farther, for a vocabulary that is larger than the counts."""
    exact = 1 / torch.arange(1, 5001, dtype=torch.float64)
    exact /= exact.sum()
    null = drawn_divergence(exact, 300)
    generator = torch.Generator().manual_seed(3)
    for p, other in ((exact, False), (exact.flip(0), True)):
        drawn = torch.multinomial(p, 300, replacement=True, generator=generator)
        found = first_divergence(exact, torch.bincount(drawn, minlength=5000))
        for value, expected in zip(found, null, strict=True):
            assert value > 1.5 * expected if other else abs(value / expected - 1) < 0.15
    assert drawn_divergence(exact, 3000).forward < null.forward


def test_smoothed_counts_are_used_for_kl_alone() -> None:
    exact, counts = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([3, 0, 1])
    smoothed = [(count + 0.01) / 4.03 for count in (3, 0, 1)]
    found = first_divergence(exact, counts)
    assert found.forward == pytest.approx(kl([0.5, 0.25, 0.25], smoothed))
    assert found.backward == pytest.approx(kl(smoothed, [0.5, 0.25, 0.25]))
    assert found.jensen_shannon == divergence(exact, frequencies(counts)).jensen_shannon


def test_thinned_counts_are_of_the_same_tokens() -> None:
    counts = torch.tensor([600, 0, 300, 100])
    some = thinned(counts, 100)
    assert some.sum() == 100
    assert (some <= counts).all()
    assert 45 < some[0] < 75
    assert thinned(counts, 1000).tolist() == counts.tolist()
