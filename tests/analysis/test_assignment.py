import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sae_sweep.analysis import assignment
from sae_sweep.analysis.assignment import COLDEST, assign, shared, soft_match
from sae_sweep.analysis.dictionaries import random_rows, rotated_rows
from sae_sweep.config import SaeSweepError


def best_sum(cosines):
    """The highest sum over all one-to-one assignments, each of them tried."""
    n, m = cosines.shape
    if n > m:
        return best_sum(cosines.T)
    return max(
        sum(cosines[i, j].item() for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(m), n)
    )


def grid_rows(n, width, seed):
    return torch.randint(-1, 2, (n, width), generator=torch.Generator().manual_seed(seed)).float() / 4


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000))


@settings(deadline=None, max_examples=60)
@given(sizes, st.booleans(), st.booleans())
def test_is_the_best_of_all_assignments_and_one_to_one(shape, tied, absolute):
    n_a, n_b, width, seed = shape
    a, b = (grid_rows if tied else random_rows)(n_a, width, seed), random_rows(n_b, width, seed + 1)
    b = grid_rows(n_b, width, seed + 1) if tied else b
    found = assign(a, b, absolute=absolute)
    cosines = (a @ b.T).abs() if absolute else a @ b.T
    assert found.cosines_a.nansum().item() == pytest.approx(best_sum(cosines), abs=1e-5)
    pairs = [(i, j) for i, j in enumerate(found.index_a.tolist()) if j >= 0]
    assert len(pairs) == min(n_a, n_b) == len({j for _, j in pairs})
    assert sorted(pairs) == sorted((i, j) for j, i in enumerate(found.index_b.tolist()) if i >= 0)
    for i, j in pairs:
        assert (
            found.cosines_a[i].item()
            == found.cosines_b[j].item()
            == pytest.approx(cosines[i, j].item(), abs=1e-6)
        )
    assert found.cosines_a.isnan().sum() == n_a - len(pairs)


@pytest.mark.parametrize(("n_a", "n_b"), [(200, 200), (130, 200), (200, 130)])
def test_costs_what_the_assignment_of_scipy_costs(n_a, n_b, monkeypatch):
    monkeypatch.setattr(assignment, "_BLOCK_ELEMENTS", 1000)
    a, b = random_rows(n_a, 24, 0), random_rows(n_b, 24, 1)
    rows, columns = linear_sum_assignment((a @ b.T).numpy(), maximize=True)
    found = assign(a, b)
    assert found.mean == pytest.approx((a @ b.T)[rows, columns].mean().item(), abs=1e-6)
    assert found.share(0.4) == ((a @ b.T)[rows, columns] > 0.4).double().mean().item()


def test_finds_a_shuffled_copy():
    a = random_rows(60, 16, 0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    found = assign(a, a[order])
    assert torch.equal(order[found.index_a], torch.arange(60))
    assert found.mean == pytest.approx(1)
    assert found.share() == 1


def test_features_are_shared_that_match_in_encoder_and_decoder():
    """Of five features the first two are shared, two swap their encoders, and the last differs in its own."""
    eye = torch.eye(6)
    decoder, encoder = eye[:5], eye[:5]
    other = torch.stack([eye[0], eye[1], eye[3], eye[2], eye[5]])
    found = shared((decoder, encoder), (decoder, other))
    assert found.shared_a.tolist() == found.shared_b.tolist() == [True, True, False, False, False]
    assert found.agree_a.tolist() == [True, True, False, False, True]
    assert (found.share, found.index_agreement) == (2 / 5, 3 / 5)
    assert (found.cosine_agree, found.cosine_differ) == (1, 1)


@settings(deadline=None, max_examples=40)
@given(sizes, st.sampled_from([0.2, 0.5, 0.7]))
def test_the_rule_holds_feature_by_feature(shape, threshold):
    n_a, n_b, width, seed = shape
    a = random_rows(n_a, width, seed), random_rows(n_a, width, seed + 1)
    b = random_rows(n_b, width, seed + 2), random_rows(n_b, width, seed + 3)
    found = shared(a, b, threshold)
    in_decoder, in_encoder = (assign(x, y).index_a.tolist() for x, y in zip(a, b, strict=True))
    for i, j in enumerate(in_decoder):
        both = j >= 0 and (a[0][i] @ b[0][j]).item() > threshold and (a[1][i] @ b[1][j]).item() > threshold
        assert found.shared_a[i].item() == both
        assert found.agree_a[i].item() == (j >= 0 and in_encoder[i] == j)
    assert found.share == pytest.approx(found.shared_a.sum().item() / min(n_a, n_b))
    assert found.shared_b.sum() == found.shared_a.sum()


def naive_plan(cosines, temperature, iterations):
    """Sinkhorn's iterations as they are written, in float64."""
    kernel = (cosines.double() / temperature).exp()
    n, m = kernel.shape
    v = torch.ones(m, dtype=torch.float64)
    for _ in range(iterations):
        u = 1 / n / (kernel @ v)
        v = 1 / m / (kernel.T @ u)
    return u[:, None] * kernel * v


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from([0.05, 0.2, 1.0]), st.integers(1, 20), st.sampled_from([2, 1 << 24]))
def test_soft_matches_equal_the_iterations_as_written(shape, temperature, iterations, elements):
    n_a, n_b, width, seed = shape
    a, b = random_rows(n_a, width, seed), random_rows(n_b, width, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "_BLOCK_ELEMENTS", elements)
        found = soft_match(a, b, temperature, iterations=iterations, tolerance=0)
    plan, cosines = naive_plan(a @ b.T, temperature, iterations), (a @ b.T).double()
    assert found.mean == pytest.approx((plan * cosines).sum().item(), abs=1e-4)
    rows, columns = plan / plan.sum(1, keepdim=True), plan / plan.sum(0)
    torch.testing.assert_close(found.weight_a.double(), rows.amax(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.weight_b.double(), columns.amax(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.cosines_a.double(), (rows * cosines).sum(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.cosines_b.double(), (columns * cosines).sum(0), atol=1e-4, rtol=0)
    picked = rows.gather(1, found.index_a[:, None])[:, 0]
    torch.testing.assert_close(picked, rows.amax(1), atol=1e-4, rtol=0)


def test_soft_matches_of_a_low_temperature_are_the_assignment():
    a = random_rows(40, 16, 0)
    b = torch.nn.functional.normalize(a + 0.1 * random_rows(40, 16, 1), dim=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found, exact = soft_match(a, b[order], 0.01), assign(a, b[order])
    assert torch.equal(found.index_a, exact.index_a)
    assert torch.equal(found.index_b, exact.index_b)
    assert found.mean == pytest.approx(exact.mean, abs=1e-3)
    assert found.error <= 1e-3
    assert found.weight_a.min() > 0.99


def test_a_temperature_far_below_all_cosines_gives_no_nan():
    found = soft_match(random_rows(7, 3, 0), random_rows(5, 3, 1), COLDEST, iterations=5)
    assert math.isfinite(found.mean)
    assert found.weight_a.isfinite().all()
    far = torch.tensor([[1.0, 0.0], [0.99, 0.01]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert math.isfinite(soft_match(*far, COLDEST).mean)
    with pytest.raises(SaeSweepError, match=r"temperature=0.001 must be at least 0.01"):
        soft_match(*far, 0.001)


def test_the_rule_of_a_rotated_copy_finds_nothing():
    a = random_rows(50, 32, 0), random_rows(50, 32, 1)
    assert shared(a, a).share == 1
    assert shared(a, (rotated_rows(a[0], 3), rotated_rows(a[1], 3))).share == 0


def test_refuses_what_does_not_fit_in_memory_and_dictionaries_that_differ():
    a = random_rows(10, 3, 0)
    with pytest.raises(SaeSweepError, match=r"10 to 10 features needs 0.0 GiB .* Match nearest neighbours"):
        assign(a, a, most_bytes=799)
    assert assign(a, a, most_bytes=800).mean == pytest.approx(1)
    with pytest.raises(SaeSweepError, match="rows of 3 and 4 entries"):
        assign(a, torch.ones(2, 4))
    with pytest.raises(SaeSweepError, match="no features"):
        soft_match(a, torch.ones(0, 3))
    with pytest.raises(SaeSweepError, match=r"temperature=0 must be at least 0\.01"):
        soft_match(a, a, 0)
