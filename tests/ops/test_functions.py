"""Gradients over sparse patterns: gradcheck and dense formulas, in float64 on the reference kernels."""

from functools import partial

import pytest
import torch

from sae_sweep.ops import CSR, Encoded, SparsePattern, decode, gather_columns, mean_square, pre_activations
from tests.ops import helpers
from tests.ops.helpers import REFERENCE

BATCH, D_IN, D_SAE = 5, 4, 7
draw = partial(helpers.draw, dtype=torch.float64)


def encoded(floor: float, *, batch: int = BATCH) -> Encoded:
    result = REFERENCE.encode_above(
        draw(batch, D_IN),
        draw(D_SAE, D_IN, seed=1),
        None,
        torch.full((D_SAE,), floor, dtype=torch.float64),
        10**6,
    )
    assert result is not None
    return result


@pytest.fixture(params=[(0.0,), (-9.0,), (9.0,), (0.0, -0.5)], ids=["some", "all", "none", "two patterns"])
def patterns(request) -> list[CSR]:
    return [encoded(floor).csr for floor in request.param]


def test_decode(patterns):
    sparse = [SparsePattern(REFERENCE, csr) for csr in patterns]
    values = [draw(csr.nnz, seed=3).requires_grad_() for csr in patterns]
    W_dec = draw(D_SAE, D_IN, seed=4).requires_grad_()

    def decoded(W, *v):
        return tuple(decode(list(zip(sparse, v, strict=True)), W))

    assert torch.autograd.gradcheck(decoded, (W_dec, *values))
    for csr, kept, ours in zip(patterns, values, decoded(W_dec, *values), strict=True):
        dense = torch.zeros(BATCH, D_SAE, dtype=torch.float64)
        dense[csr.row_indices, csr.indices.long()] = kept.detach()
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
    found = [
        (SparsePattern(REFERENCE, csr), values.detach()) for csr, values in zip(patterns, theirs, strict=True)
    ]
    ours = pre_activations(constant, W_enc, b_enc, b_dec, found)
    weights = [draw(csr.nnz, seed=6) for csr in patterns]
    expected = torch.autograd.grad(
        sum((v * w).sum() for v, w in zip(theirs, weights, strict=True)), parameters
    )
    got = torch.autograd.grad(sum((v * w).sum() for v, w in zip(ours, weights, strict=True)), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gather_columns_and_mean_square():
    sparse = SparsePattern(REFERENCE, encoded(0.0).csr)
    thresholds = draw(D_SAE).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: gather_columns(sparse, t), thresholds)
    x = draw(BATCH, D_IN).requires_grad_()
    assert torch.autograd.gradcheck(mean_square, x)
    torch.testing.assert_close(mean_square(x), x.square().mean())
    transposed = draw(D_IN, BATCH).t().requires_grad_()
    assert not transposed.is_contiguous()
    assert torch.autograd.gradcheck(mean_square, transposed)


def test_an_empty_batch():
    csr = encoded(0.0, batch=0).csr
    sparse, values = SparsePattern(REFERENCE, csr), torch.zeros(0, dtype=torch.float64, requires_grad=True)
    W_dec = draw(D_SAE, D_IN).requires_grad_()
    [y] = decode([(sparse, values)], W_dec)
    assert y.shape == (0, D_IN)
    y.sum().backward()
    assert not W_dec.grad.any()


def test_keep_drops_non_zeros_and_keeps_rows():
    csr, values, _ = encoded(-0.5)
    mask = values > 0.3
    kept = csr.keep(mask)
    assert torch.equal(kept.row_indices, csr.row_indices[mask])
    assert torch.equal(kept.indices, csr.indices[mask])
    assert kept.offsets[-1] == mask.sum()


@pytest.mark.parametrize("biased", [False, True])
def test_a_pattern_of_some_features(biased):
    """As in AuxK: its columns are a few features, whose gradients are added to those of all."""
    all_features = encoded(0.0).csr
    features = torch.tensor([5, 1, 6])
    x, W = draw(BATCH, D_IN), draw(D_SAE, D_IN, seed=1)
    few = REFERENCE.encode_above(
        x, W[features].contiguous(), None, torch.full((3,), -0.5, dtype=torch.float64), 10**6
    ).csr
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
    columns_of = [all_features.indices.long(), features[few.indices.long()]]
    dense = []
    for csr, values, columns in zip((all_features, few), theirs, columns_of, strict=True):
        f = torch.zeros(BATCH, D_SAE, dtype=torch.float64).index_put((csr.row_indices, columns), values)
        dense.append(f @ W_dec)
    for a, b in zip(got, torch.autograd.grad(loss(theirs, dense), parameters), strict=True):
        torch.testing.assert_close(a, b)
