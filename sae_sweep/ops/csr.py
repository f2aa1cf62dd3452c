"""Sparsity patterns in compressed sparse rows (CSR)."""

from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_sweep.ops.checks import INT32_LIMIT, Check


@dataclass(frozen=True, eq=False)
class CSR:
    """Positions of a matrix's non-zeros, row by row; their values are passed beside it.

    Raises:
        ValueError: unless it is one. Kernels follow its numbers without a look.
    """

    offsets: Int[Tensor, " rows_plus_1"]
    """int64: the non-zeros of row r are [offsets[r], offsets[r + 1])."""
    indices: Int[Tensor, " nnz"]
    """int32: column of each non-zero, ascending within a row."""
    columns: int
    """Number of columns."""
    from_kernel: InitVar[bool] = False
    """Whether a kernel has made it, which is then not checked: on a GPU a check waits for the device."""

    def __post_init__(self, from_kernel: bool) -> None:
        if from_kernel:
            return
        check = Check("CSR")
        check.number("columns", self.columns, 0, INT32_LIMIT - 1)
        check.integers("offsets", self.offsets, torch.int64, None)
        check.indices("indices", self.indices, torch.int32, None, self.columns)
        check.number("rows", self.rows, 0, INT32_LIMIT - 1)
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != self.nnz or (self.offsets.diff() < 0).any():
            check.refuse("offsets", "are not in order", f"rising from 0 to {self.nnz}, the number of indices")

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def nnz(self) -> int:
        return len(self.indices)

    @cached_property
    def row_indices(self) -> Int[Tensor, " nnz"]:
        """int64: row of each non-zero."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=self.nnz)

    def keep(self, mask: Bool[Tensor, " nnz"]) -> "CSR":
        """The matrix with only the non-zeros that `mask` marks."""
        before = torch.cat([self.offsets.new_zeros(1), mask.cumsum(0)])
        return CSR(before[self.offsets], self.indices[mask], self.columns, from_kernel=True)


class Transposed(NamedTuple):
    """The transpose of a CSR."""

    csr: CSR
    permutation: Int[Tensor, " nnz"]
    """int64: position in the original of each non-zero of `csr`."""
