import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import correlation
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.correlation import correlate
from sae_sweep.analysis.firing import Activations
from sae_sweep.config import SaeSweepError


def codes_of(f, cuts=()):
    codes = Codes(f.shape[1])
    for part in torch.tensor_split(torch.arange(len(f)), list(cuts)):
        codes.update(Activations.of(f[part]), part.int(), torch.zeros(len(part)).long())
    return codes


def latents(tokens, features, seed, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(tokens, features, generator=generator)
    return f * (torch.rand(tokens, features, generator=generator) < share)


def naive(a, b):
    """Pearson and Jaccard of all pairs, 0 where a feature is constant."""
    a, b = a.double().numpy(), b.double().numpy()
    pearson, jaccard = np.zeros((a.shape[1], b.shape[1])), np.zeros((a.shape[1], b.shape[1]))
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            joint = ((a[:, i] > 0) & (b[:, j] > 0)).sum()
            jaccard[i, j] = joint / max(1, ((a[:, i] > 0) | (b[:, j] > 0)).sum())
            if a[:, i].std() > 0 and b[:, j].std() > 0:
                pearson[i, j] = np.corrcoef(a[:, i], b[:, j])[0, 1]
    return pearson, jaccard


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 7), st.integers(1, 9), st.integers(0, 1000), st.integers(1, 40))
def test_every_pair_is_as_a_naive_loop_has_it(tokens, n_a, n_b, seed, block):
    a, b = latents(tokens, n_a, seed), latents(tokens, n_b, seed + 1)
    if n_a > 1 and n_b > 1:
        a[:, 0], b[:, 1] = 0, a[:, 1]
    rows, columns = torch.cartesian_prod(torch.arange(n_a), torch.arange(n_b)).reshape(-1, 2).T
    before, correlation._PAIRS_AT_ONCE = correlation._PAIRS_AT_ONCE, block
    try:
        found = correlate(codes_of(a, [tokens // 3]), codes_of(b), (rows, columns))
    finally:
        correlation._PAIRS_AT_ONCE = before
    for values, best, expected in zip(
        (found.pairs_pearson, found.pairs_jaccard), (found.pearson, found.jaccard), naive(a, b), strict=True
    ):
        assert values.view(n_a, n_b).numpy() == pytest.approx(expected, abs=1e-6)
        assert best.values_a.nan_to_num().numpy() == pytest.approx(np.maximum(expected.max(1), 0), abs=1e-6)
        assert best.values_b.nan_to_num().numpy() == pytest.approx(np.maximum(expected.max(0), 0), abs=1e-6)
        for i, j in enumerate(best.index_a.tolist()):
            assert (
                (expected[i].max() <= 1e-9) if j < 0 else expected[i, j] == pytest.approx(expected[i].max())
            )
    assert found.tokens == tokens


def test_the_same_feature_in_another_place_is_found():
    a = latents(200, 6, 0)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    found = correlate(codes_of(a), codes_of(a[:, order] * 7))
    assert found.pearson.index_b.tolist() == order.tolist()
    assert found.jaccard.index_b.tolist() == order.tolist()
    assert found.pearson.values_a == pytest.approx(torch.ones(6), abs=1e-6)


def test_of_equal_partners_the_first_is_taken_and_without_one_there_is_none():
    a = latents(50, 2, 1, share=1.0)
    a[:, 1] = 0
    found = correlate(codes_of(a), codes_of(torch.stack([a[:, 0]] * 2, 1)))
    assert found.pearson.index_a.tolist() == [0, -1]
    assert found.jaccard.values_a.isnan().tolist() == [False, True]


def test_codes_of_different_tokens_are_refused():
    a = latents(10, 3, 2)
    other = Codes(3)
    other.update(Activations.of(a), torch.arange(10).int() + 1, torch.zeros(10).long())
    with pytest.raises(SaeSweepError, match="of different tokens"):
        correlate(codes_of(a), other)
