"""The backends under test, random inputs, and definitions of what kernels compute that use no kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_sweep.ops import CSR, Encoded, Kernels
from sae_sweep.ops.csr import Transposed
from sae_sweep.ops.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
GPU = torch.cuda.is_available()
TRITON = "triton-gpu" if GPU else "triton-interpreted"
CPU_SCREENS = ["cpu-int16", "cpu-bfloat16", "cpu-float32"]


@dataclass(frozen=True)
class Backend:
    """Kernels under test, with the device of their tensors."""

    name: str
    kernels: Kernels
    device: str = "cpu"

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        return draw(*shape, seed=seed, device=self.device)

    def full(self, size: int, number: float) -> Tensor:
        return torch.full((size,), number, device=self.device)

    def few(self, count: int, most: int = 3) -> int:
        """`count`, or at most `most` if kernels are interpreted, which takes milliseconds per row."""
        return min(count, most) if self.name == "triton-interpreted" else count


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def product(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    z = x.cpu() @ W.cpu().t()
    return z if b is None else z + b.cpu()


def largest(row: Tensor, k: int) -> list[int]:
    """Columns of the k largest, ascending; of equal numbers the first."""
    numbers = row.tolist()
    return sorted(sorted(range(len(numbers)), key=lambda column: (-numbers[column], column))[:k])


def define_topk(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    columns = torch.tensor([largest(row, k) for row in z], dtype=torch.int32).view(len(z), k)
    return columns, z.gather(1, columns.long())


def define_encode_topk(x: Tensor, W: Tensor, b: Tensor | None, k: int) -> Encoded:
    columns, values = [], []
    for row in product(x, W, b):
        kept = [column for column in largest(row, k) if row[column] > 0]
        padding = k - len(kept)
        columns += [*kept, *[0] * padding]
        values += [*row[kept].tolist(), *[0.0] * padding]
    offsets = torch.arange(len(x) + 1) * k
    return Encoded(CSR(offsets, torch.tensor(columns, dtype=torch.int32), len(W)), torch.tensor(values))


def define_encode_above(x: Tensor, W: Tensor, b: Tensor | None, floors: Tensor) -> Encoded:
    z = product(x, W, b)
    kept = [(row > floors.cpu()).nonzero().flatten().int() for row in z]
    counts = torch.tensor([0, *map(len, kept)])
    indices = torch.cat([*kept, torch.zeros(0, dtype=torch.int32)])
    csr = CSR(counts.cumsum(0), indices, len(W))
    return Encoded(csr, z[csr.row_indices, indices.long()])


def define_transpose(csr: CSR) -> Transposed:
    columns = csr.indices.tolist()
    permutation = sorted(range(csr.nnz), key=lambda p: (columns[p], p))
    counts = torch.tensor([0, *(columns.count(column) for column in range(csr.columns))])
    rows = csr.row_indices.cpu()[permutation].int()
    return Transposed(CSR(counts.cumsum(0), rows, csr.rows), torch.tensor(permutation, dtype=torch.int64))


def define_spmm(csr: CSR, values: Tensor, dense: Tensor) -> Tensor:
    matrix = torch.zeros(csr.rows, csr.columns, dtype=torch.float64)
    at = csr.row_indices.cpu(), csr.indices.long().cpu()
    return (matrix.index_put(at, values.cpu().double(), accumulate=True) @ dense.cpu().double()).float()


def define_sddmm(csr: CSR, left: Tensor, right: Tensor) -> Tensor:
    products = left.cpu().double() @ right.cpu().double().t()
    return products[csr.row_indices.cpu(), csr.indices.long().cpu()].float()


def assert_same_csr(ours: CSR, theirs: CSR) -> None:
    assert torch.equal(ours.offsets.cpu(), theirs.offsets.cpu())
    assert torch.equal(ours.indices.cpu(), theirs.indices.cpu())
    assert ours.columns == theirs.columns


def assert_close(ours: Tensor, theirs: Tensor, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=rtol, atol=atol)


def assert_same(ours: Encoded | None, theirs: Encoded | None) -> None:
    assert ours is not None
    assert theirs is not None
    assert_same_csr(ours.csr, theirs.csr)
    assert_close(ours.values, theirs.values)


def assert_products(kernels: Kernels, csr: CSR, values: Tensor, x: Tensor, W: Tensor) -> None:
    """The transpose, and all products with a sparse matrix and with its transpose."""
    ours, theirs = kernels.transpose(csr), define_transpose(csr)
    assert_same_csr(ours.csr, theirs.csr)
    assert torch.equal(ours.permutation.cpu(), theirs.permutation)
    assert_close(kernels.sddmm(csr, x, W), define_sddmm(csr, x, W), atol=1e-4)
    for matrix, numbers, dense in ((csr, values, W), (ours.csr, values[ours.permutation], x)):
        assert_close(kernels.spmm(matrix, numbers, dense), define_spmm(matrix, numbers, dense), atol=1e-4)
