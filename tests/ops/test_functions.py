"""Gradients over sparse patterns: float64 gradcheck on the plain kernels, and the C++ ones beside them."""

from functools import partial

import pytest
import torch

from sae_sweep.ops import CSR, Encoded, SparsePattern, decode, gather_columns, mean_square, pre_activations
from sae_sweep.ops.cpu import CPUKernels
from sae_sweep.store import cache_folder
from tests.ops import helpers
from tests.ops.helpers import REFERENCE

BATCH, D_IN, D_SAE = 5, 4, 7
draw = partial(helpers.draw, dtype=torch.float64)


def found(floor: float, *, batch: int = BATCH) -> Encoded:
    result = REFERENCE.encode_above(
        draw(batch, D_IN), draw(D_SAE, D_IN, seed=1), None, torch.full((D_SAE,), floor), 10**6
    )
    assert result is not None
    return result


@pytest.fixture(params=[(0.0,), (-9.0,), (9.0,), (0.0, -0.5)], ids=["some", "all", "none", "two patterns"])
def patterns(request) -> list[CSR]:
    return [found(floor).csr for floor in request.param]


def test_decode(patterns):
    sparse = [SparsePattern(REFERENCE, csr) for csr in patterns]
    values = [draw(len(csr.indices), seed=3).requires_grad_() for csr in patterns]
    W_dec = draw(D_SAE, D_IN, seed=4).requires_grad_()

    def decoded(W, *v):
        return tuple(decode(list(zip(sparse, v, strict=True)), W))

    assert torch.autograd.gradcheck(decoded, (W_dec, *values))
    for csr, of_csr, ours in zip(patterns, values, decoded(W_dec, *values), strict=True):
        dense = torch.zeros(BATCH, D_SAE, dtype=torch.float64)
        dense[csr.row_indices, csr.indices.long()] = of_csr.detach()
        torch.testing.assert_close(ours, dense @ W_dec)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_pre_activations(patterns, biased, centred):
    """Against the dense formula, whose gradients autograd knows."""
    x = draw(BATCH, D_IN)
    W_enc = draw(D_SAE, D_IN, seed=1).t().requires_grad_()
    b_enc = draw(D_SAE, seed=2).requires_grad_() if biased else None
    b_dec = draw(D_IN, seed=5).requires_grad_() if centred else None
    parameters = [p for p in (W_enc, b_enc, b_dec) if p is not None]
    z = (x if b_dec is None else x - b_dec) @ W_enc + (0 if b_enc is None else b_enc)
    theirs = [z[csr.row_indices, csr.indices.long()] for csr in patterns]
    constant = x if b_dec is None else (x - b_dec).detach()
    entries = [
        (SparsePattern(REFERENCE, csr), values.detach()) for csr, values in zip(patterns, theirs, strict=True)
    ]
    ours = pre_activations(constant, W_enc, b_enc, b_dec, entries)
    weights = [draw(len(csr.indices), seed=6) for csr in patterns]
    expected = torch.autograd.grad(
        sum((v * w).sum() for v, w in zip(theirs, weights, strict=True)), parameters
    )
    got = torch.autograd.grad(sum((v * w).sum() for v, w in zip(ours, weights, strict=True)), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_spread_and_mean_square():
    sparse = SparsePattern(REFERENCE, found(0.0).csr)
    thresholds = draw(D_SAE).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: gather_columns(sparse, t), thresholds)
    x = draw(BATCH, D_IN).requires_grad_()
    assert torch.autograd.gradcheck(mean_square, x)
    torch.testing.assert_close(mean_square(x), x.square().mean())
    slanted = draw(D_IN, BATCH).t().requires_grad_()
    assert not slanted.is_contiguous()
    assert torch.autograd.gradcheck(mean_square, slanted)


def test_an_empty_batch():
    csr = found(0.0, batch=0).csr
    sparse, values = SparsePattern(REFERENCE, csr), torch.zeros(0, dtype=torch.float64, requires_grad=True)
    W_dec = draw(D_SAE, D_IN).requires_grad_()
    [y] = decode([(sparse, values)], W_dec)
    assert y.shape == (0, D_IN)
    y.sum().backward()
    assert not W_dec.grad.any()


def test_gradients_that_are_not_contiguous_reach_the_kernels():
    kernels = CPUKernels(cache_folder(None))
    csr = found(0.0).csr
    W_dec = draw(D_SAE, D_IN).float().requires_grad_()
    values = draw(len(csr.indices)).float().requires_grad_()
    [y] = decode([(SparsePattern(kernels, csr), values)], W_dec)
    slanted = draw(D_IN, BATCH).float().t()
    ours = torch.autograd.grad(y, (W_dec, values), slanted)
    [y] = decode([(SparsePattern(REFERENCE, csr), values)], W_dec)
    for a, b in zip(ours, torch.autograd.grad(y, (W_dec, values), slanted), strict=True):
        torch.testing.assert_close(a, b)


def test_keep_drops_entries_and_keeps_rows():
    csr, values, _ = found(-0.5)
    mask = values > 0.3
    kept = csr.keep(mask)
    assert torch.equal(kept.row_indices, csr.row_indices[mask])
    assert torch.equal(kept.indices, csr.indices[mask])
    assert kept.offsets[-1] == mask.sum()


@pytest.mark.parametrize("biased", [False, True])
def test_a_code_of_some_features(biased):
    """AuxK's: its columns are a few features, whose gradients are added to those of the others."""
    all_features = found(0.0).csr
    features = torch.tensor([5, 1, 6])
    x, W = draw(BATCH, D_IN), draw(D_SAE, D_IN, seed=1)
    few = REFERENCE.encode_above(x, W[features].contiguous(), None, torch.full((3,), -0.5), 10**6).csr
    sparse = [SparsePattern(REFERENCE, all_features), SparsePattern(REFERENCE, few, features)]
    W_enc, W_dec = W.t().requires_grad_(), draw(D_SAE, D_IN, seed=4).requires_grad_()
    b_enc = draw(D_SAE, seed=2).requires_grad_() if biased else None
    z = x @ W_enc + (0 if b_enc is None else b_enc)
    theirs = [
        z[all_features.row_indices, all_features.indices.long()],
        z[few.row_indices, features[few.indices.long()]],
    ]
    ours = pre_activations(
        x, W_enc, b_enc, None, [(s, v.detach()) for s, v in zip(sparse, theirs, strict=True)]
    )
    parameters = [p for p in (W_enc, W_dec, b_enc) if p is not None]

    def loss(values, decoded):
        return sum((y * y).sum() for y in decoded) + sum(v.sum() for v in values)

    got = torch.autograd.grad(loss(ours, decode(list(zip(sparse, ours, strict=True)), W_dec)), parameters)
    places = [all_features.indices.long(), features[few.indices.long()]]
    dense = []
    for csr, values, columns in zip((all_features, few), theirs, places, strict=True):
        f = torch.zeros(BATCH, D_SAE, dtype=torch.float64).index_put((csr.row_indices, columns), values)
        dense.append(f @ W_dec)
    for a, b in zip(got, torch.autograd.grad(loss(theirs, dense), parameters), strict=True):
        torch.testing.assert_close(a, b)
