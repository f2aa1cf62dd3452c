"""The kernels of every backend against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.ops import CSR, AdamUpdate, Encoded, SparsePattern, decode, pre_activations
from tests.ops.helpers import (
    assert_close,
    assert_products,
    assert_same,
    define_encode_above,
    define_encode_topk,
    define_topk,
    product,
)

SHAPES = [(130, 31, 257, 5), (1, 2, 3, 3), (7, 8, 40, 40), (0, 8, 16, 2), (3, 1, 9, 1), (241, 33, 64, 16)]
"""Batch, d_in, d_sae and k: odd sizes, k = 1 and k = d_sae, an empty batch, more than one block of tokens."""
shapes = pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)


@shapes
@pytest.mark.parametrize("biased", [False, True])
def test_encode_topk(backend, batch, d_in, d_sae, k, biased):
    batch, d_sae = backend.few(batch), backend.few(d_sae, 50)
    x, W = backend.draw(batch, d_in), backend.draw(d_sae, d_in, seed=1)
    b = backend.draw(d_sae, seed=2) if biased else None
    assert_same(backend.kernels.encode_topk(x, W, b, k), define_encode_topk(x, W, b, k))


@shapes
@pytest.mark.parametrize("floor", [-1.0, 0.0, 1.5])
def test_encode_above(backend, batch, d_in, d_sae, k, floor):
    batch, d_sae = backend.few(batch), backend.few(d_sae, 50)
    x, W = backend.draw(batch, d_in), backend.draw(d_sae, d_in, seed=1)
    b, floors = backend.draw(d_sae, seed=2), floor + 0.1 * backend.draw(d_sae, seed=3)
    theirs = define_encode_above(x, W, b, floors)
    count = theirs.csr.nnz
    assert_same(backend.kernels.encode_above(x, W, b, floors, count), theirs)
    if count:
        assert backend.kernels.encode_above(x, W, b, floors, count - 1) is None


def test_too_many_or_none_above_their_floors(backend):
    """Both when only exact values can tell and when estimates suffice."""
    x, W = backend.draw(3, 8), backend.draw(1, 8, seed=1) + 1e-5 * backend.draw(40, 8, seed=2)
    for floor in (float(x[0] @ W[0]), -99.0):
        floors = backend.full(40, floor)
        theirs = define_encode_above(x, W, None, floors)
        assert_same(backend.kernels.encode_above(x, W, None, floors, theirs.csr.nnz), theirs)
        assert backend.kernels.encode_above(x, W, None, floors, theirs.csr.nnz - 1) is None
    nothing = backend.kernels.encode_above(x, W, None, floors + 200, 0)
    assert nothing is not None
    assert len(nothing.values) == 0


@pytest.mark.parametrize("d_in", [29, 40, 257])
def test_a_value_has_the_same_bits_whatever_else_is_found(backend, d_in):
    """BatchTopK's floor is a guess that a resumed run makes anew."""
    rows, features = backend.few(50), backend.few(200, 40)
    x, W = backend.draw(rows, d_in), backend.draw(features, d_in, seed=1)
    dense = torch.full((rows, features), torch.nan, device=backend.device)
    for floor in (-0.5, 0.0, 0.4, 0.9, 1.7):
        floors = backend.full(features, floor * d_in**0.5)
        encoded = backend.kernels.encode_above(x, W, None, floors, rows * features)
        assert encoded is not None
        at = encoded.csr.row_indices, encoded.csr.indices.long()
        before = dense[at]
        assert torch.equal(torch.where(before.isnan(), encoded.values, before), encoded.values)
        dense[at] = encoded.values


def test_a_token_without_a_bound_meets_an_empty_slot(backend):
    """Empty slots of a panel are candidates too, and have no row to compute."""
    rows, x = backend.draw(17 + 1, 8), backend.draw(3, 8, seed=1)
    x[1] *= 1e-21  # its squares underflow
    rows[0] = 1e6 * x[1] / x[1].norm()  # lies before the first feature's row
    W = rows[1:]
    assert_same(backend.kernels.encode_topk(x, W, None, 4), define_encode_topk(x, W, None, 4))


@pytest.mark.parametrize("seed", range(5))
def test_features_without_a_bound_among_others(backend, seed):
    """More candidates than the buffer holds, so that it is pruned on the way."""
    rows, features = backend.few(20), backend.few(400, 60)
    x, W = backend.draw(rows, 16, seed=seed), backend.draw(features, 16, seed=seed + 1)
    b = backend.draw(features, seed=seed + 2).abs()
    W[backend.draw(features, seed=seed + 3).topk(features // 4).indices] *= 1e-21
    assert_same(backend.kernels.encode_topk(x, W, b, 5), define_encode_topk(x, W, b, 5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-6, 6), st.integers(1, 12))
def test_nothing_is_lost_at_any_scale(backend, seed, exponent, k):
    """Rows of very different norms, with an outlier dimension as in residual streams."""
    if backend.name == "triton-interpreted":
        pytest.skip("takes 4 s; the next test has fixed scales")
    x, W = backend.draw(20, 24, seed=seed), backend.draw(100, 24, seed=seed + 1)
    x[:, 3] *= 100
    x *= 10**exponent
    W *= torch.linspace(0.01, 10, 100, device=backend.device).unsqueeze(-1)
    encoded = backend.kernels.encode_topk(x, W, None, k)
    exact = (x.double() @ W.double().t()).topk(k, dim=-1).values.relu().sum()
    torch.testing.assert_close(encoded.values.double().sum(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_features_that_estimates_cannot_tell_apart(backend, scale):
    """They differ by less than 16 bits can show, and all are candidates: more than is usual."""
    x, W = backend.draw(3, 24), backend.draw(1, 24, seed=1) + 1e-4 * backend.draw(200, 24, seed=2)
    x[:, 3] *= 100
    W[:100] *= torch.linspace(0.01, 3, 100, device=backend.device).unsqueeze(-1)
    x *= scale * (x @ W[-1]).sign().unsqueeze(-1)  # so that nearly all are above 0
    best = (x.double() @ W.double().t()).topk(7).values
    values = backend.kernels.encode_topk(x, W, None, 7).values.view(3, 7).double()
    torch.testing.assert_close(values.sort(descending=True).values, best, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("width", [10, 78, 251])
def test_errors_as_large_as_the_bound(backend, width):
    """At these widths equal numbers are almost half a 16-bit step off, all in one direction.

    In 16 bits the first feature's product comes out too small, and the second's, which the bias leaves a
    little below it, too large, each by nearly the bound.
    """
    x = torch.ones(1, width, device=backend.device)
    W = torch.stack([torch.ones(width), -torch.ones(width)]).to(backend.device)
    b = torch.tensor([0.0, 2 * width - 0.5 * width**1.5 / 46_000], device=backend.device)
    encoded = backend.kernels.encode_topk(x, W, b, 1, torch.arange(2, device=backend.device))
    dead = backend.kernels.encode_dead_topk(x, W, b, 1, encoded.estimates)
    for one in (encoded, dead):
        assert one.csr.indices.tolist() == [0]
        assert one.values.tolist() == [width]


@pytest.mark.parametrize(("scale", "filler"), [(1e-19, 0.0), (1e-25, 0.0), (1.0, 1e-30)])
def test_rows_whose_squares_underflow(backend, scale, filler):
    x, W = backend.draw(6, 8), backend.draw(40, 8, seed=1)
    W[3:9] = scale * W[3:9] + filler
    x[2] *= scale
    floors = backend.full(40, 0.0)
    ours = backend.kernels.encode_above(x, W, None, floors, 10**6)
    assert_same(ours, define_encode_above(x, W, None, floors))


@pytest.mark.parametrize("width", [24, 33])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("k", [1, 20, 90])
@pytest.mark.parametrize("floored", [False, True])
def test_encode_dead_topk(backend, width, biased, k, floored):
    """Both searches leave estimates, or none; the same features are selected as from dense products.

    All are multiples of powers of 2 for which float32 is exact; pairs differ by less than estimates show.
    """
    rows, features = backend.few(250, 2), backend.few(300, 60)
    x, W = backend.draw(rows, width), backend.draw(features, width, seed=1)
    x, W = (2 * x).round() / 2, (128 * W).round() / 128
    b = backend.draw(features, seed=2).round() if biased else None
    x[1] = 0  # all are tied, unless biased
    candidates = torch.arange(0, features, 3, device=backend.device)
    # the error bounds of other features and of candidates that fire are too small for the dead
    W[torch.arange(features, device=backend.device) % 3 > 0] *= 2**-7
    W[candidates[::10]] *= 2**-7
    W[candidates[1::2]] = W[candidates[::2]] + backend.draw(len(candidates) // 2, width).round() * 2**-14
    if floored:
        floors = backend.full(features, 2.0)
        encoded = backend.kernels.encode_above(x, W, b, floors, 10**6, candidates)
        assert_same(encoded, define_encode_above(x, W, b, floors))
    else:
        encoded = backend.kernels.encode_topk(x, W, b, 5, candidates)
        assert_same(encoded, define_encode_topk(x, W, b, 5))
    assert (encoded.estimates is not None) == backend.kernels.leaves_estimates
    mask = torch.arange(len(candidates), device=backend.device) % 10 > 0
    dead = candidates[mask]
    W, b, k = W[dead], None if b is None else b[dead], min(k, len(dead))
    estimates = None if encoded.estimates is None else encoded.estimates.keep(mask)
    ours = backend.kernels.encode_dead_topk(x, W, b, k, estimates)
    columns, values = define_topk(product(x, W, b), k)
    csr = CSR(torch.arange(rows + 1) * k, columns.flatten(), len(dead))
    assert_same(ours, Encoded(csr, values.flatten()))


@pytest.mark.parametrize("k", [1, 40, 99, 100])
def test_topk_of_many_ties(backend, k):
    """The first of equal numbers; torch.topk may choose others."""
    z = torch.tensor([2.0, 1.0, 1.0, 3.0] * 25, device=backend.device).expand(3, 100).contiguous()
    columns, values = backend.kernels.topk(z, k)
    order = sorted(range(100), key=lambda i: (-float(z[0, i]), i))[:k]
    assert columns.tolist() == [sorted(order)] * 3
    assert torch.equal(values, z.gather(1, columns.long()))


def test_rows_of_zeros_and_ties(backend):
    """The first of equal values; a row of zeros has nothing above 0."""
    features = backend.few(300, 40)
    x, W = torch.ones(5, 4, device=backend.device), torch.ones(features, 4, device=backend.device)
    x[2] = 0
    W[10] = 0
    encoded = backend.kernels.encode_topk(x, W, None, 7)
    assert encoded.csr.indices.view(5, 7)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert encoded.values.view(5, 7)[2].tolist() == [0.0] * 7
    assert encoded.values.view(5, 7)[1].tolist() == [4.0] * 7
    everything = backend.kernels.encode_above(x, W, None, backend.full(features, 3.0), 10**6)
    assert everything is not None
    assert everything.csr.offsets.tolist() == [n * (features - 1) for n in (0, 1, 2, 2, 3, 4)]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_are_not_lost(backend):
    """They have to reach the loss, which stops a run that diverged."""
    rows = backend.few(6)
    x, W = backend.draw(rows, 5), backend.draw(50, 5, seed=1)
    W[9] = torch.nan
    assert backend.kernels.encode_topk(x, W, None, 3).values.isinf().view(rows, 3).any(dim=-1).all()
    encoded = backend.kernels.encode_above(x, W, None, backend.full(50, 100.0), 10**6)
    assert encoded.csr.indices.tolist() == [9] * rows
    W[9] = torch.inf
    assert not backend.kernels.encode_topk(x, W, None, 3).values.isfinite().all()
    x[1] = torch.inf
    candidates, W = torch.arange(20, 50, device=backend.device), backend.draw(50, 5, seed=1)
    encoded = backend.kernels.encode_topk(x, W, None, 3, candidates)
    assert not encoded.values.view(rows, 3)[1].isfinite().all()
    assert encoded.csr.indices.max() < 50
    dead = backend.kernels.encode_dead_topk(x, W[candidates], None, 2, encoded.estimates).values
    assert not dead.view(rows, 2)[1].isfinite().all()
    assert dead.view(rows, 2)[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_nan_in_the_bias_is_not_lost(backend):
    rows, features = backend.few(20), backend.few(400, 60)
    x, W, b = backend.draw(rows, 16), backend.draw(features, 16, seed=1), backend.draw(features, seed=2).abs()
    b[7] = torch.nan
    encoded = backend.kernels.encode_topk(x, W, b, 5)
    seventh = encoded.csr.indices == 7
    assert seventh.sum() == rows
    assert encoded.values[seventh].isinf().all()


def test_topk_of_nan_and_infinity(backend):
    z = backend.draw(4, 30)
    z[1] = torch.nan
    z[2] = -torch.inf
    columns, values = backend.kernels.topk(z, 30)
    assert values[1].isinf().all()
    assert columns[0].tolist() == columns[2].tolist() == list(range(30))
    assert torch.equal(values[0], z[0])


@pytest.mark.parametrize(
    ("rows", "width", "k"), [(9, 50, 7), (5, 400, 200), (2, 300, 150), (3, 4, 4), (2, 6, 1), (0, 3, 2)]
)
@pytest.mark.parametrize("special", [None, torch.inf, -torch.inf, 3.4e38])
def test_topk_of_either_sign(backend, rows, width, k, special):
    z = backend.draw(width, backend.few(rows)).t() - 2  # not contiguous
    if special is not None:
        z[:, width // 2] = special
    for ours, theirs in zip(backend.kernels.topk(z, k), define_topk(z.cpu(), k), strict=True):
        assert torch.equal(ours.cpu(), theirs)
    columns, values = backend.kernels.topk(torch.full_like(z, -0.5), k)
    assert columns.tolist() == [list(range(k))] * len(z)
    assert (values == -0.5).all()


@pytest.mark.parametrize("floor", [0.5, -99.0, 99.0], ids=["some", "all", "none"])
@shapes
def test_sparse_products(backend, batch, d_in, d_sae, k, floor):
    """Including a feature without non-zeros and one that is active everywhere."""
    x, W = backend.draw(backend.few(batch), d_in), backend.draw(backend.few(d_sae, 64), d_in, seed=1)
    floors = torch.full((len(W),), floor)
    floors[0], floors[1] = 99, -99
    csr, values, _ = define_encode_above(x, W, None, floors)
    csr = CSR(csr.offsets.to(backend.device), csr.indices.to(backend.device), csr.columns)
    assert_products(backend.kernels, csr, values.to(backend.device), x, W)


@pytest.mark.parametrize("width", [16, 33, 48])
def test_products_with_rows_that_are_used_often(backend, width):
    """As in AuxK: few features with many non-zeros each; some features and some tokens have none."""
    features, tokens = 40, backend.few(60, 9)
    mask = backend.draw(tokens, features) > -0.5
    mask[7] = False
    mask[:, 5] = False
    counts = mask.sum(dim=-1)
    csr = CSR(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), mask.nonzero()[:, 1].int(), features)
    values = backend.draw(csr.nnz, seed=1)
    x, W = backend.draw(tokens, width, seed=3), backend.draw(features, width, seed=2)
    assert_products(backend.kernels, csr, values, x, W)


def test_gradients_over_several_patterns(backend):
    """Against autograd on the dense formulas, with a gradient that is not contiguous."""
    x, W, W_dec = backend.draw(9, 12), backend.draw(40, 12, seed=1), backend.draw(40, 12, seed=3)
    b_enc, floors = backend.draw(40, seed=2), [backend.full(40, floor) for floor in (0.5, 2.0)]
    encoded = [backend.kernels.encode_above(x, W, b_enc, floor, 10**6) for floor in floors]
    masks = [x @ W.t() + b_enc > floor for floor in floors]
    to_output = backend.draw(12, 9, seed=5).t()
    results = []
    for sparse in (True, False):
        W_enc, b, W_out = parameters = [p.clone().requires_grad_() for p in (W, b_enc, W_dec)]
        if sparse:
            found = [(SparsePattern(backend.kernels, one.csr), one.values) for one in encoded]
            z = pre_activations(x, W_enc.t(), b, None, found)
            out = decode([(pattern, values) for (pattern, _), values in zip(found, z, strict=True)], W_out)
        else:
            out = [((x @ W_enc.t() + b) * mask) @ W_out for mask in masks]
        results.append(torch.autograd.grad(out, parameters, [to_output] * 2))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, atol=1e-3)


@pytest.mark.parametrize(("width", "betas", "eps"), [(19, (0.9, 0.99), 1e-8), (1030, (0.8, 0.95), 1e-6)])
@pytest.mark.parametrize("unit_rows", [None, "before", "after"])
@pytest.mark.parametrize("tangent", [False, True])
def test_adam(backend, width, betas, eps, unit_rows, tangent):
    """Against torch's Adam, with the rows and their gradients prepared by hand."""
    start, scale = backend.draw(5, width) / width**0.5, torch.tensor(0.7, device=backend.device)
    ours, moments = start.clone(), tuple(torch.zeros(2, 5, width, device=backend.device))
    theirs = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([theirs], lr=1e-2, betas=betas, eps=eps)
    for step in range(1, 6):
        gradient = backend.draw(5, width, seed=step)
        update = AdamUpdate(1e-2, betas, eps, step, scale, tangent=tangent, unit_rows=unit_rows)
        backend.kernels.adam(ours, gradient.clone(), moments, update)
        rows = theirs.data
        if unit_rows == "before":
            rows /= rows.norm(dim=-1, keepdim=True)
        theirs.grad = gradient * scale
        if tangent:
            theirs.grad -= (theirs.grad * rows).sum(dim=-1, keepdim=True) * rows
        adam.step()
        if unit_rows == "after":
            rows /= rows.norm(dim=-1, keepdim=True)
    state = adam.state[theirs]
    for one, other in zip((ours, *moments), (rows, state["exp_avg"], state["exp_avg_sq"]), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning")
@pytest.mark.parametrize(("rows", "width"), [(11, 29), (1, 2)])
def test_normalise(backend, rows, width):
    x = 3 * backend.draw(rows, width) + 5
    if rows > 1:
        x[0] = 2.5  # a constant row
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().sum(dim=-1, keepdim=True) / (width - 1)).sqrt()
    assert_close(backend.kernels.normalise(x, 1e-5), centred / (deviation + 1e-5), rtol=1e-5, atol=1e-6)
    assert backend.kernels.normalise(x[:0], 1e-5).shape == (0, width)
