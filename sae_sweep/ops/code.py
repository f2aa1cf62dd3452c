"""Sparse codes, and what a backend computes with them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Code:
    """Which features are active for which tokens, in compressed rows; the numbers are kept beside it."""

    offsets: Int[Tensor, " rows_plus_1"]
    """int64: the entries of row t are [offsets[t], offsets[t + 1])."""
    indices: Int[Tensor, " entries"]
    """int32: the column of each entry, rising within a row."""
    columns: int
    """Number of columns: d_sae."""

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def row_of_entry(self) -> Int[Tensor, " entries"]:
        """The row of each entry."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    def keep(self, mask: Tensor) -> "Code":
        """The code of those entries alone that `mask` marks."""
        before = torch.cat([self.offsets.new_zeros(1), mask.cumsum(0)])
        return Code(before[self.offsets], self.indices[mask], self.columns)


class Transposed(NamedTuple):
    """A code by feature."""

    code: Code
    """Rows are the features, columns the tokens."""
    places: Int[Tensor, " entries"]
    """int64: where each of its entries stands in the original."""


class Found(NamedTuple):
    """What an encoder found."""

    code: Code
    values: Float[Tensor, " entries"]
    """Pre-activation of each entry, to the last bit but for the order of its sum."""


class Kernels(ABC):
    """What a backend provides. Dense arguments are contiguous; nothing here knows autograd."""

    name: str

    @abstractmethod
    def normalise(self, x: Float[Tensor, "batch d_in"], eps: float) -> Float[Tensor, "batch d_in"]:
        """(x - mean) / (std + eps) of each row, std unbiased."""

    @abstractmethod
    def largest(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        k: int,
    ) -> Found:
        """The k largest of W x + b of each row that are above 0; exactly k a row, filled up with zeros."""

    @abstractmethod
    def above(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        floors: Float[Tensor, " d_sae"],
        most: int,
    ) -> Found | None:
        """All of W x + b above the features' floors; None where these are more than `most`."""

    @abstractmethod
    def largest_of(self, z: Float[Tensor, "batch n"], k: int) -> tuple[Tensor, Tensor]:
        """Columns [batch, k] (int32, rising) and values of the k largest of each row, of either sign."""

    @abstractmethod
    def transpose(self, code: Code) -> Transposed:
        """The code by feature, tokens rising within each."""

    @abstractmethod
    def combine(
        self,
        code: Code,
        values: Float[Tensor, " entries"],
        dense: Float[Tensor, "columns d_in"],
        *,
        places: Tensor | None = None,
        onto: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[Tensor, "rows d_in"]:
        """Sum over each row's entries of value x the dense row of its column; `onto` is added to in place.

        With `places`, the value of entry p is values[places[p]].
        """

    @abstractmethod
    def products(
        self, code: Code, left: Float[Tensor, "rows d_in"], right: Float[Tensor, "columns d_in"]
    ) -> Float[Tensor, " entries"]:
        """The dot product of left[row] and right[column] for each entry."""

    @abstractmethod
    def adam(
        self,
        weights: Float[Tensor, "rows d"],
        gradient: Float[Tensor, "rows d"],
        moments: tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]],
        update: "AdamUpdate",
    ) -> None:
        """One step of Adam, in place."""


class AdamUpdate(NamedTuple):
    """The numbers of one step of Adam (Kingma and Ba 2015), and what is done to the rows around it."""

    rate: float
    betas: tuple[float, float]
    eps: float
    step: int
    """From 1, as in the bias corrections."""
    shrink: float = 1.0
    """Factor of the gradient: of clipping."""
    tangent: bool = False
    """Whether the gradient's part along the row is taken out."""
    unit: str | None = None
    """`before` or `after`: when rows are set to norm 1; None: never."""
