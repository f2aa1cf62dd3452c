"""Compares every kernel of a device with the reference, at odd sizes and at those that are trained."""

from collections.abc import Callable

import torch
from gpu_setting import Setting, Size
from torch import Tensor

from sae_sweep.ops import CSR, AdamUpdate, Encoded, Kernels
from sae_sweep.ops.reference import ReferenceKernels
from sae_sweep.store import cache_folder

ODD = (Size("odd", 31, 257, 130, 5), Size("dense", 8, 40, 7, 40), Size("even", 33, 64, 241, 16))
Draw = Callable[..., Tensor]
Check = Callable[[Kernels, Kernels, Size, Draw], None]


def kernels(setting: Setting) -> None:
    """Run every check; a record for each that passed, an AssertionError for the first that did not."""
    ours = fast_kernels(setting.device)
    for size in (*ODD, *setting.sizes):
        for name, check in KERNEL_CHECKS.items():
            generator = torch.Generator().manual_seed(0)

            def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(*shape, generator=generator).to(setting.device)

            check(ours, ReferenceKernels(), size, draw)
            setting.put({"kernel": name, "size": size.name, "backend": ours.name})


def fast_kernels(device: torch.device) -> Kernels:
    if device.type == "cuda":
        from sae_sweep.ops.triton import TritonKernels

        return TritonKernels()
    from sae_sweep.ops.cpu import CPUKernels

    return CPUKernels(cache_folder(None))


def check_encode_topk(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    x, W, b = draw(size.batch, size.d_in), draw(size.d_sae, size.d_in), draw(size.d_sae)
    expected = theirs.encode_topk(x, W, b, size.k)
    smallest = dense(expected).masked_fill(dense(expected) == 0, torch.inf).amin(1, keepdim=True)
    found = ours.encode_topk(x, W, b, size.k)
    assert_selects(found, expected, smallest)
    assert torch.equal((dense(found) != 0).sum(1), (dense(expected) != 0).sum(1))


def check_encode_above(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    x, W, b = draw(size.batch, size.d_in), draw(size.d_sae, size.d_in), draw(size.d_sae)
    floors = 2.5 * size.d_in**0.5 + 0.1 * draw(size.d_sae)
    expected = theirs.encode_above(x, W, b, floors, x.shape[0] * size.d_sae)
    found = ours.encode_above(x, W, b, floors, x.shape[0] * size.d_sae)
    assert expected is not None
    assert found is not None
    assert_selects(found, expected, floors)
    assert ours.encode_above(x, W, b, floors - 100 * size.d_in, 1) is None


def check_topk(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    z = draw(size.batch, size.d_sae)
    for found, expected in zip(ours.topk(z, size.k), theirs.topk(z, size.k), strict=True):
        assert torch.equal(found, expected)


def check_products(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    """The transpose, and all products with a sparse matrix and with its transpose."""
    x, W = draw(size.batch, size.d_in), draw(size.d_sae, size.d_in)
    csr, values = theirs.encode_topk(x, W, None, size.k)[:2]
    found, expected = ours.transpose(csr), theirs.transpose(csr)
    assert torch.equal(found.permutation, expected.permutation)
    assert torch.equal(found.csr.indices, expected.csr.indices)
    assert_close(ours.spmm(csr, values, W), theirs.spmm(csr, values, W))
    turned = values[expected.permutation]
    assert_close(ours.spmm(expected.csr, turned, x), theirs.spmm(expected.csr, turned, x))
    assert_close(ours.sddmm(csr, x, W), theirs.sddmm(csr, x, W))


def check_adam(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    start, gradient = draw(size.d_sae, size.d_in), draw(size.d_sae, size.d_in)
    mean, square = draw(size.d_sae, size.d_in), draw(size.d_sae, size.d_in) ** 2
    update = AdamUpdate(1e-3, (0.9, 0.99), 1e-8, 3, tangent=True, unit_rows="after")
    after = []
    for one in (ours, theirs):
        weights, moments = start.clone(), (mean.clone(), square.clone())
        one.adam(weights, gradient.clone(), moments, update)
        after.append((weights, *moments))
    for found, expected in zip(*after, strict=True):
        assert_close(found, expected)


def check_normalise(ours: Kernels, theirs: Kernels, size: Size, draw: Draw) -> None:
    x = 3 * draw(size.batch, size.d_in) + 1
    assert_close(ours.normalise(x, 1e-5), theirs.normalise(x, 1e-5))


KERNEL_CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


def dense(encoded: Encoded) -> Tensor:
    csr: CSR = encoded.csr
    z = encoded.values.new_zeros(csr.rows, csr.columns)
    return z.index_put((csr.row_indices, csr.indices.long()), encoded.values, accumulate=True)


def assert_selects(ours: Encoded, theirs: Encoded, edge: Tensor) -> None:
    """Equal values; what only one of the two selects lies at the edge, where rounding decides."""
    found, expected = dense(ours), dense(theirs)
    both = (found != 0) & (expected != 0)
    assert_close(found[both], expected[both])
    only = (found != 0) ^ (expected != 0)
    away = ((found + expected - edge).abs() / (1 + edge.abs()))[only]
    assert (away < 1e-4).all(), f"{int((away >= 1e-4).sum())} of {int(both.sum())} selected otherwise"


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
