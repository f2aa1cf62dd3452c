import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import match, match_to_init, matching
from sae_sweep.config import SaeSweepError


def dictionary(n, d_in, seed=0):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def naive(a, b, threshold):
    """The definition, one pair of features at a time, in float64."""

    def cosine(x, y):
        lengths = (x.norm() * y.norm()).item()
        return (x @ y).item() / lengths if lengths else 0.0

    table = torch.tensor([[cosine(x, y) for y in b.double()] for x in a.double()])
    top_a, top_b = table.amax(1), table.amax(0)
    return (
        top_a,
        top_b,
        (top_b > threshold).double().mean().item(),
        (top_a > threshold).double().mean().item(),
    )


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10_000))


def test_hand_made_dictionaries_and_denominators():
    a = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    b = torch.tensor([[2.0, 0, 0], [0, 0, 1], [0, 0, -1], [1, 1, 0]])
    result = match(a, b, threshold=0.7)
    # of b: the first equals a0, and (1, 1, 0) lies at cos 0.707 from both of a's rows
    assert result.ratio_b_in_a == 2 / 4
    assert result.ratio_a_in_b == 2 / 2
    torch.testing.assert_close(result.top1_b, torch.tensor([1, 0, 0, math.sqrt(0.5)]))
    torch.testing.assert_close(result.top1_a, torch.tensor([1, math.sqrt(0.5)]))
    assert result.mmcs_b_to_a == pytest.approx((1 + math.sqrt(0.5)) / 4)
    assert result.mmcs_a_to_b == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert (result.n_a, result.n_b) == (2, 4)
    assert result.live_ratio_a_in_b is None


def test_threshold_is_strict():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    cosine = match(a, b).top1_a.item()
    assert cosine == pytest.approx(0.6)
    assert match(a, b, threshold=cosine).ratio_a_in_b == 0
    assert match(a, b, threshold=cosine - 1e-6).ratio_a_in_b == 1


def test_opposite_directions_do_not_match():
    a = dictionary(1, 8)
    result = match(a, -a)
    assert result.ratio_a_in_b == 0
    assert result.mmcs_a_to_b == pytest.approx(-1)


def test_zero_rows_never_match_and_give_no_nan():
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])
    result = match(a, b, threshold=0.0)
    assert result.ratio_a_in_b == result.ratio_b_in_a == 0
    assert result.top1_a.tolist() == [0, 0]
    assert math.isfinite(result.mmcs_a_to_b)


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from([0.0, 0.3, 0.7, 0.95]), st.integers(1, 60))
def test_equals_the_definition_whatever_the_chunk(shape, threshold, elements):
    n_a, n_b, d_in, seed = shape
    a, b = dictionary(n_a, d_in, seed), dictionary(n_b, d_in, seed + 1)
    top_a, top_b, b_in_a, a_in_b = naive(a, b, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "CHUNK_ELEMENTS", elements)
        result = match(a, b, threshold)
    torch.testing.assert_close(result.top1_a.double(), top_a.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.top1_b.double(), top_b.double(), atol=1e-6, rtol=0)
    assert (result.ratio_b_in_a, result.ratio_a_in_b) == pytest.approx((b_in_a, a_in_b))


@settings(deadline=None, max_examples=40)
@given(shapes, st.floats(1e-30, 1e30))
def test_symmetries(shape, scale):
    n_a, n_b, d_in, seed = shape
    a, b = dictionary(n_a, d_in, seed), dictionary(n_b, d_in, seed + 1)
    result = match(a, b)
    back = match(b, a)
    torch.testing.assert_close(result.top1_a, back.top1_b)
    assert result.ratio_b_in_a == pytest.approx(back.ratio_a_in_b)
    order = torch.randperm(n_a, generator=torch.Generator().manual_seed(seed))
    shuffled = match(a[order], b)
    torch.testing.assert_close(shuffled.top1_a, result.top1_a[order])
    torch.testing.assert_close(shuffled.top1_b, result.top1_b)
    torch.testing.assert_close(match(a * scale, b).top1_b, result.top1_b, atol=1e-5, rtol=0)
    own = match(a, a * scale)
    assert own.ratio_a_in_b == own.ratio_b_in_a == 1
    assert own.mmcs_a_to_b == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(shapes, st.data())
def test_live_ratio_leaves_the_dead_of_both_out(shape, data):
    n_a, n_b, d_in, seed = shape
    a, b = dictionary(n_a, d_in, seed), dictionary(n_b, d_in, seed + 1)
    live_a = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n_a, max_size=n_a)))
    live_b = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n_b, max_size=n_b)))
    result = match(a, b, 0.5, densities_a=live_a * 0.1, densities_b=live_b * 0.1)
    plain = match(a, b, 0.5)
    torch.testing.assert_close(result.top1_a, plain.top1_a)
    torch.testing.assert_close(result.top1_b, plain.top1_b)
    assert (result.n_live_a, result.n_live_b) == (live_a.sum(), live_b.sum())
    if live_a.any() and live_b.any():
        living = match(a[live_a], b[live_b], 0.5)
        assert result.live_ratio_b_in_a == pytest.approx(living.ratio_b_in_a)
        assert result.live_ratio_a_in_b == pytest.approx(living.ratio_a_in_b)
    elif live_b.any():
        assert result.live_ratio_b_in_a == 0
    else:
        assert math.isnan(result.live_ratio_b_in_a)


def test_random_dictionaries_lie_at_the_null():
    """definitions.md 2.5: unit Gaussian rows, d = 768, F = 3072: mean top-1 .128, nothing near 0.7."""
    result = match(dictionary(3072, 768, 0), dictionary(3072, 768, 1))
    assert result.mmcs_a_to_b == pytest.approx(0.128, abs=0.002)
    assert result.top1_a.max() < 0.22
    assert result.ratio_a_in_b == result.ratio_b_in_a == 0


def test_match_to_init_counts_features_near_any_initial_row():
    initial = torch.eye(4)
    moved = torch.tensor([[0.0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert match_to_init(moved, initial) == 2 / 4


def test_takes_an_sae_by_its_decoder():
    class Trained:
        W_dec = torch.nn.Parameter(torch.eye(3))

    result = match(Trained(), torch.eye(3).bfloat16())
    assert result.ratio_a_in_b == 1
    assert not result.top1_a.requires_grad


@pytest.mark.parametrize(
    ("a", "b", "threshold", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 0.7, r"d_in differs \(3 and 4\)"),
        (torch.ones(2, 3), torch.ones(0, 3), 0.7, r"decoder b has shape \(0, 3\)"),
        (torch.ones(3), torch.ones(2, 3), 0.7, r"decoder a has shape \(3,\)"),
        (torch.full((2, 3), float("nan")), torch.ones(2, 3), 0.7, "decoder a holds NaN"),
        (torch.ones(2, 3), torch.ones(2, 3), -0.1, r"threshold=-0\.1 must lie between 0 and 1"),
    ],
)
def test_refuses(a, b, threshold, message):
    with pytest.raises(SaeSweepError, match=message):
        match(a, b, threshold)


def test_refuses_densities_of_another_sae():
    with pytest.raises(SaeSweepError, match=r"densities of b have shape \(3,\), not \(2,\)"):
        match(torch.eye(2), torch.eye(2), densities_a=torch.ones(2), densities_b=torch.ones(3))


@pytest.mark.parametrize("elements", [1 << 24, 40])
def test_the_result_says_which_row_is_nearest(monkeypatch, elements):
    monkeypatch.setattr("sae_sweep.analysis.matching.CHUNK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(13, 6, generator=generator), torch.randn(9, 6, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    some_dead = {"densities_a": torch.arange(13.0) % 3, "densities_b": torch.arange(9.0) % 2}
    all_dead = {"densities_a": torch.zeros(13), "densities_b": torch.ones(9)}
    for result in (match(a, b), match(a, b, **some_dead), match(a, b, **all_dead)):
        assert torch.equal(result.index_a, cosines.argmax(1))
        assert torch.equal(result.index_b, cosines.argmax(0))
        torch.testing.assert_close(cosines[torch.arange(13), result.index_a], result.top1_a)
