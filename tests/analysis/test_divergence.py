"""Divergences of token distributions against formulas written out."""

import math

import pytest
import torch

from sae_sweep.analysis.divergence import divergence, frequencies

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
