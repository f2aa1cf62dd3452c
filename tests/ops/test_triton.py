"""Every Triton kernel against its definition in plain torch: on a GPU if there is one, and interpreted.

A process has all kernels interpreted or none, from its first import of Triton, which torch may do unasked.
So those tests run in a process that `test_interpreted` starts.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from coverage import Coverage

from sae_sweep.config import SaeSweepError
from sae_sweep.ops import AdamUpdate, Kernels, SparsePattern, decode, pre_activations
from tests.ops import helpers
from tests.ops.helpers import REFERENCE, assert_same, assert_same_csr

GPU = torch.cuda.is_available()
HERE = GPU or os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
draw = partial(helpers.draw, device=DEVICE)
SHAPES = [(5, 31, 150, 5), (1, 2, 3, 3), (3, 8, 40, 40), (0, 8, 16, 2), (3, 1, 9, 1), (3, 33, 64, 16)]
"""Batch, d_in, d_sae and k: odd sizes, k = 1 and k = d_sae, an empty batch, more than one block of tokens."""


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    """With small blocks, so that small shapes have several."""
    if not HERE:
        pytest.skip("run by test_interpreted")
    from sae_sweep.ops.triton import kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BLOCK_TOKENS", 2)
        patch.setattr(kernels, "_CHUNK", 64)
        yield kernels.TritonKernels(DEVICE)


@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_the_k_largest(kernels, batch, d_in, d_sae, k, biased):
    x, W, b = draw(batch, d_in), draw(d_sae, d_in, seed=1), draw(d_sae, seed=2) if biased else None
    assert_same(kernels.encode_topk(x, W, b, k), REFERENCE.encode_topk(x, W, b, k))


@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
@pytest.mark.parametrize("floor", [-1.0, 1.5])
def test_all_above_their_floors(kernels, batch, d_in, d_sae, k, floor):
    x, W, b = draw(batch, d_in), draw(d_sae, d_in, seed=1), draw(d_sae, seed=2)
    floors = floor + 0.1 * draw(d_sae, seed=3)
    theirs = REFERENCE.encode_above(x, W, b, floors, batch * d_sae)
    assert theirs is not None
    count = len(theirs.values)
    assert_same(kernels.encode_above(x, W, b, floors, count), theirs)
    if count:
        assert kernels.encode_above(x, W, b, floors, count - 1) is None


def test_too_many_or_none_above_their_floors(kernels):
    """Where the exact value alone tells, and where the screen is enough."""
    x, W = draw(3, 8), draw(1, 8, seed=1) + 1e-5 * draw(40, 8, seed=2)
    for floor in (x[:1] @ W[0], torch.full((1,), -99.0, device=DEVICE)):
        floors = floor.expand(40).contiguous()
        theirs = REFERENCE.encode_above(x, W, None, floors, 10**6)
        assert theirs is not None
        assert_same(kernels.encode_above(x, W, None, floors, len(theirs.values)), theirs)
        assert kernels.encode_above(x, W, None, floors, len(theirs.values) - 1) is None
    nothing = kernels.encode_above(x, W, None, floors + 200, 0)
    assert nothing is not None
    assert len(nothing.values) == 0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_what_the_screen_cannot_tell_apart(kernels, scale):
    """Features that differ by less than 16 bits show, and more of them than there is usually room for."""
    x, W = draw(3, 24), draw(1, 24, seed=1) + 1e-4 * draw(200, 24, seed=2)
    x[:, 3] *= 100
    W[:100] *= torch.linspace(0.01, 3, 100, device=DEVICE).unsqueeze(-1)
    x *= scale * (x @ W[-1]).sign().unsqueeze(-1)  # so that nearly all are above 0
    best = (x.double() @ W.double().t()).topk(7).values
    found = kernels.encode_topk(x, W, None, 7).values.view(3, 7).double()
    torch.testing.assert_close(found.sort(descending=True).values, best, rtol=1e-5, atol=1e-5 * scale)


def test_the_error_that_is_allowed_for(kernels):
    from sae_sweep.ops.triton.kernels import _narrow, _product

    x, W = draw(20, 48), draw(90, 48, seed=1) * torch.logspace(-6, 6, 90, device=DEVICE).unsqueeze(-1)
    x[:, 7] *= 1000
    rough_x, rough_W = _narrow(x), _narrow(W)
    slack = torch.outer(rough_x.norms, rough_W.error_norms) + torch.outer(rough_x.error_norms, rough_W.norms)
    missed = (_product(rough_x, rough_W).double() - x.double() @ W.double().t()).abs()
    assert rough_x.rows.dtype == torch.bfloat16
    assert (missed <= slack).all()
    # twice what rounding takes: the interpreter cuts bits off
    assert (slack <= 0.017 * torch.outer(x.norm(dim=-1), W.norm(dim=-1))).all()


def test_rows_of_zeros_and_ties(kernels):
    x, W = torch.ones(5, 4, device=DEVICE), torch.ones(100, 4, device=DEVICE)
    x[2] = 0
    W[10] = 0
    found = kernels.encode_topk(x, W, None, 7)
    # of equal values the first features; a row of zeros has nothing above 0
    assert found.csr.indices.view(5, 7)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.values.view(5, 7)[2].tolist() == [0.0] * 7
    assert found.values.view(5, 7)[1].tolist() == [4.0] * 7
    everything = kernels.encode_above(x, W, None, torch.full((100,), 3.0, device=DEVICE), 10**6)
    assert everything is not None
    assert everything.csr.offsets.tolist() == [0, 99, 198, 198, 297, 396]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_is_found(kernels):
    """It has to reach the loss, which is what stops a run that diverged."""
    x, W = draw(3, 5), draw(50, 5, seed=1)
    W[9] = torch.nan
    assert kernels.encode_topk(x, W, None, 3).values.isinf().view(3, 3).any(dim=-1).all()
    found = kernels.encode_above(x, W, None, torch.full((50,), 100.0, device=DEVICE), 10**6)
    assert found.csr.indices.tolist() == [9] * 3
    W[9] = torch.inf
    assert not kernels.encode_topk(x, W, None, 3).values.isfinite().all()
    z = draw(4, 30)
    z[1] = torch.nan
    z[2] = -torch.inf
    columns, values = kernels.topk(z, 30)
    assert values[1].isinf().all()
    assert columns[0].tolist() == columns[2].tolist() == list(range(30))
    assert torch.equal(values[0], z[0])


@pytest.mark.parametrize(("rows", "width", "k"), [(4, 50, 7), (2, 300, 150), (3, 4, 4), (2, 6, 1), (0, 3, 2)])
def test_the_largest_of_rows_whatever_their_sign(kernels, rows, width, k):
    z = draw(width, rows).t() - 2
    for ours, theirs in zip(kernels.topk(z, k), REFERENCE.topk(z, k), strict=True):
        assert torch.equal(ours, theirs)
    columns, values = kernels.topk(torch.full_like(z, -0.5), k)
    assert columns.tolist() == [list(range(k))] * rows
    assert (values == -0.5).all()


@pytest.mark.parametrize("floor", [0.5, -99.0, 99.0], ids=["some", "all", "none"])
@pytest.mark.parametrize(("batch", "d_in", "d_sae", "k"), SHAPES)
def test_sparse_products(kernels, batch, d_in, d_sae, k, floor):
    x, W = draw(batch, d_in), draw(d_sae, d_in, seed=1)
    floors = torch.full((d_sae,), floor, device=DEVICE)
    floors[0], floors[1] = 99, -99  # a feature without entries, and one with all
    found = REFERENCE.encode_above(x, W, None, floors, batch * d_sae)
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


def test_gradients_over_several_codes(kernels):
    x, W, b_enc, W_dec = draw(9, 12), draw(40, 12, seed=1), draw(40, seed=2), draw(40, 12, seed=3)
    floors = torch.zeros(40, device=DEVICE)
    founds = [REFERENCE.encode_above(x, W, b_enc, floors + floor, 10**6) for floor in (0.5, 2.0)]
    results = []
    for backend in (kernels, REFERENCE):
        parameters = [p.clone().requires_grad_() for p in (W, b_enc, W_dec)]
        patterns = [SparsePattern(backend, found.csr) for found in founds if found]
        entries = list(zip(patterns, [found.values for found in founds if found], strict=True))
        z = pre_activations(x, parameters[0].t(), parameters[1], None, entries)
        out = decode(list(zip(patterns, z, strict=True)), parameters[2])
        sum((one**2).sum() for one in out).backward()
        results.append([p.grad for p in parameters])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [19, 1030])
@pytest.mark.parametrize("unit", [None, "before", "after"])
@pytest.mark.parametrize("tangent", [False, True])
def test_adam(kernels, unit, tangent, width):
    results = []
    for backend in (kernels, REFERENCE):
        weights, moments = draw(5, width) / width**0.5, tuple(torch.zeros(2, 5, width, device=DEVICE))
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
            backend.adam(weights, draw(5, width, seed=step), moments, update)
        results.append((weights, *moments))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adam_is_torchs(kernels):
    parameter = torch.nn.Parameter(draw(6, 5))
    ours, moments = parameter.detach().clone(), tuple(torch.zeros(2, 6, 5, device=DEVICE))
    adam = torch.optim.Adam([parameter], lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    for step in range(1, 6):
        parameter.grad = draw(6, 5, seed=step)
        adam.step()
        kernels.adam(ours, parameter.grad, moments, AdamUpdate(1e-2, (0.8, 0.95), 1e-6, step))
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "width"), [(11, 29), (1, 2)])
def test_normalise(kernels, rows, width):
    x = 3 * draw(width, rows).t() + 5
    if rows > 1:
        x[0] = 2.5
    torch.testing.assert_close(kernels.normalise(x, 1e-5), REFERENCE.normalise(x, 1e-5), rtol=1e-5, atol=1e-6)
    assert kernels.normalise(x[:0], 1e-5).shape == (0, width)


def test_why_there_are_no_kernels(monkeypatch):
    pytest.importorskip("triton")
    from sae_sweep.ops.triton import TritonKernels

    def fail(*_) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(TritonKernels, "normalise", fail)
    with pytest.raises(SaeSweepError, match=r"triton cannot compile for cpu: Failed to find C compiler\.$"):
        TritonKernels("cpu")
    for name in [name for name in sys.modules if name.startswith("sae_sweep.ops.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(SaeSweepError, match="triton cannot be imported: "):
        import sae_sweep.ops.triton  # noqa: F401


def run(*words: str, **env: str) -> str:
    done = subprocess.run([sys.executable, *words], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow(reason="a process of its own interprets every kernel at every shape")
@pytest.mark.skipif(not GPU and HERE, reason="this is that process")
def test_interpreted():
    pytest.importorskip("triton")
    measured = ["-m", "coverage", "run", "--parallel-mode"] if Coverage.current() else []
    said = run(*measured, "-m", "pytest", "-q", __file__, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert " passed, 4 skipped" in said


@pytest.mark.skipif(not GPU and HERE, reason="where they are interpreted nothing is compiled")
def test_the_compiler_takes_them(tmp_path: Path):
    """It is stricter than the interpreter, and needs no GPU to compile for one."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compile_triton.py")
    compiled = run(str(script), TRITON_CACHE_DIR=str(tmp_path)).split()
    assert set(compiled) == {"normalise", "narrow", "adam", "spmm", "sddmm", "screen", "keep_largest"}


@pytest.mark.skipif(not GPU, reason="for a GPU")
@pytest.mark.parametrize("k", [16, 64])
def test_at_full_size(kernels, k):
    """The set that float64 finds, and the same bits every time."""
    x, W = draw(4096, 768), draw(12_288, 768, seed=1) / 768**0.5
    kernels = type(kernels)(DEVICE)
    found = kernels.encode_topk(x, W, None, k)
    exact = (x.double() @ W.double().t()).topk(k).indices
    ours = torch.zeros(4096, 12_288, dtype=torch.bool, device=DEVICE)
    ours.scatter_(1, found.csr.indices.view(4096, k).long(), True)
    assert ours.gather(1, exact).double().mean() >= 0.9999
    again = kernels.encode_topk(x, W, None, k)
    assert torch.equal(found.csr.indices, again.csr.indices)
    assert torch.equal(found.values, again.values)
    transposed, permutation = kernels.transpose(found.csr)
    sums = [kernels.spmm(transposed, found.values[permutation], x) for _ in range(2)]
    assert torch.equal(*sums)
