"""Every C++ kernel against its definition in plain torch."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import SaeSweepError
from sae_sweep.ops import CSR, AdamUpdate
from sae_sweep.ops.cpu import CPUKernels, build
from sae_sweep.store import cache_folder
from tests.ops.helpers import REFERENCE, assert_same, assert_same_csr, draw

SCREENS = ["int16", "bfloat16", "float32"]
SHAPES = [(130, 31, 257, 5), (1, 2, 3, 3), (7, 8, 40, 40), (0, 8, 16, 2), (3, 1, 9, 1), (241, 33, 64, 16)]
"""Batch, d_in, d_sae and k: odd sizes, k = 1 and k = d_sae, an empty batch, more than one block of tokens."""


@pytest.fixture(scope="module", params=SCREENS)
def kernels(request) -> CPUKernels:
    found = CPUKernels(cache_folder(None), screen=request.param)
    if request.param == "int16" and not found.has_int16:
        pytest.skip("this processor has no 16-bit screen")
    return found


@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_the_k_largest(kernels, batch, d_in, d_sae, k, biased):
    x, W, b = draw(batch, d_in), draw(d_sae, d_in, seed=1), draw(d_sae, seed=2) if biased else None
    assert_same(kernels.encode_topk(x, W, b, k), REFERENCE.encode_topk(x, W, b, k))


@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
@pytest.mark.parametrize("floor", [-1.0, 0.0, 1.5])
def test_all_above_their_floors(kernels, batch, d_in, d_sae, k, floor):
    x, W, b = draw(batch, d_in), draw(d_sae, d_in, seed=1), draw(d_sae, seed=2)
    floors = floor + 0.1 * draw(d_sae, seed=3)
    theirs = REFERENCE.encode_above(x, W, b, floors, batch * d_sae)
    assert theirs is not None
    count = len(theirs.values)
    assert_same(kernels.encode_above(x, W, b, floors, count), theirs)
    if count:
        assert kernels.encode_above(x, W, b, floors, count - 1) is None


@pytest.mark.parametrize("d_in", [29, 40, 257])
def test_a_value_has_the_same_bits_whatever_else_is_found(kernels, d_in):
    """BatchTopK's floor is a guess that a resumed run makes anew."""
    x, W = draw(50, d_in), draw(200, d_in, seed=1)
    dense = torch.full((50, 200), torch.nan)
    for floor in (-0.5, 0.0, 0.4, 0.9, 1.7):
        found = kernels.encode_above(x, W, None, torch.full((200,), floor * d_in**0.5), 50 * 200)
        assert found is not None
        at = found.csr.row_indices, found.csr.indices.long()
        before = dense[at]
        assert torch.equal(torch.where(before.isnan(), found.values, before), found.values)
        dense[at] = found.values


def test_a_token_without_a_bound_meets_a_panel_that_is_not_full(kernels):
    """Places without a feature are in doubt too, and have no row."""
    rows, x = draw(17 + 1, 8), draw(3, 8, seed=1)
    x[1] *= 1e-21  # its squares are lost
    rows[0] = 1e6 * x[1] / x[1].norm()  # lies before the first feature's row
    assert_same(kernels.encode_topk(x, rows[1:], None, 4), REFERENCE.encode_topk(x, rows[1:], None, 4))


@pytest.mark.parametrize("seed", range(5))
def test_features_without_a_bound_among_others(kernels, seed):
    """More than there is room for candidates, so that they are weighed against each other on the way."""
    x, W, b = draw(20, 16, seed=seed), draw(400, 16, seed=seed + 1), draw(400, seed=seed + 2).abs()
    W[draw(400, seed=seed + 3).topk(100).indices] *= 1e-21
    assert_same(kernels.encode_topk(x, W, b, 5), REFERENCE.encode_topk(x, W, b, 5))


def test_a_bias_that_is_no_number_is_not_lost(kernels):
    b = draw(400, seed=2).abs()
    b[7] = torch.nan
    found = kernels.encode_topk(draw(20, 16), draw(400, 16, seed=1), b, 5)
    seventh = found.csr.indices == 7
    assert seventh.sum() == 20
    assert found.values[seventh].isinf().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-6, 6), st.integers(1, 12))
def test_the_screen_loses_nothing_at_any_scale(seed, exponent, k):
    """Rows of very different norms, with an outlier dimension as residual streams have it."""
    kernels = CPUKernels(cache_folder(None))
    x, W = draw(20, 24, seed=seed), draw(100, 24, seed=seed + 1)
    x[:, 3] *= 100
    x *= 10**exponent
    W *= torch.linspace(0.01, 10, 100).unsqueeze(-1)
    found = kernels.encode_topk(x, W, None, k)
    exact = (x.double() @ W.double().t()).topk(k, dim=-1).values.relu().sum()
    torch.testing.assert_close(found.values.double().sum(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [10, 78, 251])
def test_errors_as_large_as_the_bound(kernels, width):
    """At these widths equal entries lie almost half a 16-bit step off, all to one side.

    In 16 bits the first feature's product seems too small, and the second's, which the bias leaves a little
    below it, too large, each by nearly the bound.
    """
    x = torch.ones(1, width)
    W = torch.stack([torch.ones(width), -torch.ones(width)])
    b = torch.tensor([0.0, 2 * width - 0.5 * width**1.5 / 46_000])
    found = kernels.encode_topk(x, W, b, 1, torch.arange(2))
    watched = kernels.encode_dead_topk(x, W, b, 1, found.estimates)
    for one in (found, watched):
        assert one.csr.indices.tolist() == [0]
        assert one.values.tolist() == [width]


@pytest.mark.parametrize(("scale", "filler"), [(1e-19, 0.0), (1e-25, 0.0), (1.0, 1e-30)])
def test_rows_whose_squares_underflow(kernels, scale, filler):
    x, W = draw(6, 8), draw(40, 8, seed=1)
    W[3:9] = scale * W[3:9] + filler
    x[2] *= scale
    found = kernels.encode_above(x, W, None, torch.zeros(40), 10**6)
    assert_same(found, REFERENCE.encode_above(x, W, None, torch.zeros(40), 10**6))


@pytest.mark.parametrize("width", [24, 33])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("k", [1, 20, 90])
@pytest.mark.parametrize("floored", [False, True])
def test_the_largest_of_watched_features(kernels, width, biased, k, floored):
    """Both searches leave estimates, from which the same are found as from dense products."""
    x, W, b = draw(250, width), draw(300, width, seed=1), draw(300, seed=2) if biased else None
    x[4] = 0
    watched = torch.arange(0, 300, 3)
    if floored:
        found = kernels.encode_above(x, W, b, torch.full((300,), 2.0), 10**6, watched)
        assert_same(found, REFERENCE.encode_above(x, W, b, torch.full((300,), 2.0), 10**6))
    else:
        found = kernels.encode_topk(x, W, b, 5, watched)
        assert_same(found, REFERENCE.encode_topk(x, W, b, 5))
    mask = torch.arange(100) % 10 > 0
    dead = watched[mask]
    W, b = W[dead], None if b is None else b[dead]
    ours = kernels.encode_dead_topk(x, W, b, k, found.estimates.keep(mask))
    theirs = REFERENCE.encode_dead_topk(x, W, b, k, None)
    rows = torch.ones(250, dtype=torch.bool)
    rows[4] = biased  # without a bias all are tied
    assert torch.equal(ours.csr.indices.view(250, k)[rows], theirs.csr.indices.view(250, k)[rows])
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 40, 99, 100])
def test_the_largest_of_many_ties(kernels, k):
    """Of equal numbers the first; a plain top-k may choose others."""
    z = torch.tensor([2.0, 1.0, 1.0, 3.0] * 25).expand(3, 100).contiguous()
    columns, values = kernels.topk(z, k)
    order = sorted(range(100), key=lambda i: (-float(z[0, i]), i))[:k]
    assert columns.tolist() == [sorted(order)] * 3
    assert torch.equal(values, z.gather(1, columns.long()))


def test_rows_of_zeros_and_ties(kernels):
    x, W = torch.ones(5, 4), torch.ones(300, 4)
    x[2] = 0
    W[10] = 0
    found = kernels.encode_topk(x, W, None, 7)
    # of equal values the first features; a row of zeros has nothing above 0
    assert found.csr.indices.view(5, 7)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.values.view(5, 7)[2].tolist() == [0.0] * 7
    assert found.values.view(5, 7)[1].tolist() == [4.0] * 7
    everything = kernels.encode_above(x, W, None, torch.full((300,), 3.0), 10**6)
    assert everything is not None
    assert everything.csr.offsets.tolist() == [0, 299, 598, 598, 897, 1196]


def test_what_is_no_number_is_found(kernels):
    """It has to reach the loss, which is what stops a run that diverged."""
    x, W = draw(6, 5), draw(50, 5, seed=1)
    W[9] = torch.nan
    assert kernels.encode_topk(x, W, None, 3).values.isinf().view(6, 3).any(dim=-1).all()
    W[9] = torch.inf
    assert not kernels.encode_topk(x, W, None, 3).values.isfinite().all()
    x[1] = torch.inf
    watched = torch.arange(20, 50)
    found = kernels.encode_topk(x, draw(50, 5, seed=1), None, 3, watched)
    assert not found.values.view(6, 3)[1].isfinite().all()
    assert found.csr.indices.max() < 50
    of_watched = kernels.encode_dead_topk(x, draw(50, 5, seed=1)[watched], None, 2, found.estimates)
    assert not of_watched.values.view(6, 2)[1].isfinite().all()
    assert of_watched.values.view(6, 2)[0].isfinite().all()
    z = draw(4, 30)
    z[1] = torch.nan
    z[2] = -torch.inf
    columns, values = kernels.topk(z, 30)
    assert values[1].isinf().all()
    assert columns[0].tolist() == list(range(30))
    assert torch.equal(values[0], z[0])


@pytest.mark.parametrize(("rows", "width", "k"), [(9, 50, 7), (5, 400, 200), (3, 4, 4), (2, 6, 1), (0, 3, 2)])
@pytest.mark.parametrize("special", [None, torch.inf, -torch.inf, 3.4e38])
def test_the_largest_of_rows_whatever_their_sign(kernels, rows, width, k, special):
    z = draw(rows, width) - 2
    if special is not None:
        z[:, width // 2] = special
    for ours, theirs in zip(kernels.topk(z, k), REFERENCE.topk(z, k), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
def test_sparse_products(kernels, batch, d_in, d_sae, k):
    x, W = draw(batch, d_in), draw(d_sae, d_in, seed=1)
    found = REFERENCE.encode_above(x, W, None, torch.full((d_sae,), 0.5), batch * d_sae)
    assert found is not None
    csr, values = found.csr, found.values
    ours, theirs = kernels.transpose(csr), REFERENCE.transpose(csr)
    assert_same_csr(ours.csr, theirs.csr)
    assert torch.equal(ours.permutation, theirs.permutation)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(kernels.spmm(csr, values, W), REFERENCE.spmm(csr, values, W), **close)
    torch.testing.assert_close(kernels.sddmm(csr, x, W), REFERENCE.sddmm(csr, x, W), **close)
    by_feature = [backend.spmm(ours.csr, values[ours.permutation], x) for backend in (kernels, REFERENCE)]
    torch.testing.assert_close(*by_feature, **close)


@pytest.mark.parametrize("unit", [None, "before", "after"])
@pytest.mark.parametrize("tangent", [False, True])
def test_adam(kernels, unit, tangent):
    results = []
    for backend in (kernels, REFERENCE):
        weights, moments = draw(37, 19), (torch.zeros(37, 19), torch.zeros(37, 19))
        for step in (1, 2, 3):
            update = AdamUpdate(
                1e-2,
                (0.9, 0.99),
                1e-8,
                step,
                gradient_scale=torch.tensor(0.7),
                tangent=tangent,
                unit_rows=unit,
            )
            backend.adam(weights, draw(37, 19, seed=step), moments, update)
        results.append((weights, *moments))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adam_is_torchs(kernels):
    parameter = torch.nn.Parameter(draw(6, 5))
    ours, moments = parameter.detach().clone(), (torch.zeros(6, 5), torch.zeros(6, 5))
    adam = torch.optim.Adam([parameter], lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    for step in range(1, 6):
        parameter.grad = draw(6, 5, seed=step)
        adam.step()
        kernels.adam(ours, parameter.grad, moments, AdamUpdate(1e-2, (0.8, 0.95), 1e-6, step))
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-5, atol=1e-7)


def test_normalise(kernels):
    x = 3 * draw(11, 29) + 5
    torch.testing.assert_close(kernels.normalise(x, 1e-5), REFERENCE.normalise(x, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_threads_do_not_change_a_bit(kernels):
    x, W, k = draw(500, 40), draw(300, 40, seed=1), 6
    watched = torch.arange(0, 300, 2)

    def everything() -> list[torch.Tensor]:
        found = kernels.encode_topk(x, W, None, k, watched)
        of_watched = kernels.encode_dead_topk(x, W[watched], None, 40, found.estimates)
        transposed, permutation = kernels.transpose(found.csr)
        above = kernels.encode_above(x, W, None, torch.full((300,), 5.0), 10**6)
        weights, moments = draw(300, 40), tuple(torch.zeros(2, 300, 40))
        kernels.adam(weights, W, moments, AdamUpdate(1e-2, (0.9, 0.99), 1e-8, 1, tangent=True, unit="after"))
        return [
            above.csr.indices,
            above.values,
            weights,
            *moments,
            kernels.normalise(x, 1e-5),
            found.values,
            of_watched.csr.indices,
            of_watched.values,
            kernels.spmm(found.csr, found.values, W),
            kernels.spmm(transposed, found.values[permutation], x),
            kernels.sddmm(found.csr, x, W),
        ]

    many = everything()
    torch.set_num_threads(1)
    one = everything()
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))


def test_a_compiler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(SaeSweepError, match=r"the C\+\+ compiler did not run: .*/no/such/compiler"):
        build.build(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaeSweepError, match="there is no C\\+\\+ compiler"):
        build.build(tmp_path)


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'error: no room' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(SaeSweepError, match=r"did not compile .*native: error: no room"):
        build.build(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "kernels").iterdir())


@pytest.mark.parametrize("width", [16, 33, 48])
def test_products_of_rows_that_are_used_often(kernels, width):
    """As in AuxK: few features, many entries each; some features and some tokens have none."""
    features, tokens = 40, 60
    mask = draw(tokens, features) > -0.5
    mask[7] = False
    mask[:, 5] = False
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(dim=-1).cumsum(0)])
    csr = CSR(offsets, mask.nonzero()[:, 1].int(), features)
    values, W, x = draw(len(csr.indices), seed=1), draw(features, width, seed=2), draw(tokens, width, seed=3)
    by_feature = REFERENCE.transpose(csr)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(kernels.sddmm(csr, x, W), REFERENCE.sddmm(csr, x, W), **close)
    for of, numbers, dense in ((csr, values, W), (by_feature.csr, values[by_feature.permutation], x)):
        ours, theirs = (backend.spmm(of, numbers, dense) for backend in (kernels, REFERENCE))
        torch.testing.assert_close(ours, theirs, **close)
