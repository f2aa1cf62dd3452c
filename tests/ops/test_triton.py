"""The Triton kernels alone: their error bound, the compiler, and full size on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_sweep.config import SaeSweepError
from tests.ops.helpers import GPU, TRITON, draw


@pytest.mark.parametrize("backend", [TRITON], indirect=True)
def test_the_error_bound_holds_and_is_tight(backend):
    from sae_sweep.ops.triton.kernels import _narrow, _product

    scales = torch.logspace(-6, 6, 90, device=backend.device).unsqueeze(-1)
    x, W = backend.draw(20, 48), backend.draw(90, 48, seed=1) * scales
    x[:, 7] *= 1000
    narrow_x, narrow_W = _narrow(x), _narrow(W)
    bounds = torch.outer(narrow_x.norms, narrow_W.error_norms)
    bounds += torch.outer(narrow_x.error_norms, narrow_W.norms)
    errors = (_product(narrow_x, narrow_W).double() - x.double() @ W.double().t()).abs()
    assert narrow_x.rows.dtype == torch.bfloat16
    assert (errors <= bounds).all()
    # twice what rounding needs: the interpreter truncates
    assert (bounds <= 0.017 * torch.outer(x.norm(dim=-1), W.norm(dim=-1))).all()


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


def test_a_gpu_that_has_too_little_for_a_kernel_has_no_kernels(monkeypatch):
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources

    from sae_sweep.ops.triton import TritonKernels

    def fail(*_) -> None:
        raise OutOfResources(100_000, 65_536, "shared memory")

    monkeypatch.setattr(TritonKernels, "normalise", fail)
    with pytest.raises(SaeSweepError, match="triton cannot compile for cpu: out of resource: shared memory"):
        TritonKernels("cpu")


def test_the_compiler_accepts_all_kernels(tmp_path: Path):
    """It is stricter than the interpreter, and compiles for a GPU without having one."""
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_triton.py"))]
    done = subprocess.run(
        command, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.split()) == {
        *("normalise", "narrow", "adam", "spmm", "sddmm", "screen", "keep_largest")
    }


@pytest.mark.skipif(not GPU, reason="for a GPU")
@pytest.mark.parametrize("k", [16, 64])
def test_full_size(k):
    """The selection that float64 gives, and the same bits every time."""
    from sae_sweep.ops.triton import TritonKernels

    kernels = TritonKernels("cuda")
    x, W = draw(4096, 768, device="cuda"), draw(12_288, 768, seed=1, device="cuda") / 768**0.5
    encoded = kernels.encode_topk(x, W, None, k)
    exact = (x.double() @ W.double().t()).topk(k).indices
    ours = torch.zeros(4096, 12_288, dtype=torch.bool, device="cuda")
    ours.scatter_(1, encoded.csr.indices.view(4096, k).long(), True)
    assert ours.gather(1, exact).double().mean() >= 0.9999
    again = kernels.encode_topk(x, W, None, k)
    assert torch.equal(encoded.csr.indices, again.csr.indices)
    assert torch.equal(encoded.values, again.values)
    transposed, permutation = kernels.transpose(encoded.csr)
    sums = [kernels.spmm(transposed, encoded.values[permutation], x) for _ in range(2)]
    assert torch.equal(*sums)
