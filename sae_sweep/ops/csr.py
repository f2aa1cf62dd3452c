"""Sparsity patterns in compressed sparse rows (CSR)."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CSR:
    """Positions of a matrix's non-zeros, row by row; their values are passed beside it."""

    offsets: Int[Tensor, " rows_plus_1"]
    """int64: the non-zeros of row r are [offsets[r], offsets[r + 1])."""
    indices: Int[Tensor, " nnz"]
    """int32: column of each non-zero, ascending within a row."""
    columns: int
    """Number of columns."""

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
        return CSR(before[self.offsets], self.indices[mask], self.columns)


class Transposed(NamedTuple):
    """The transpose of a CSR."""

    csr: CSR
    permutation: Int[Tensor, " nnz"]
    """int64: position in the original of each non-zero of `csr`."""
