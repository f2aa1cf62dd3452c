"""Sparse codes, and what a backend computes with them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

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


class Estimates(NamedTuple):
    """Products of tokens and some features' encoder rows, in low precision, left over from a search."""

    values: Float[Tensor, "batch places"]
    """In memory that the next search uses again."""
    places: Int[Tensor, " features"]
    """int32: the column of each feature."""
    of_token: Float[Tensor, " batch"]
    """An estimate of token t and feature f is right to of_token[t] x of_feature[f]."""
    of_feature: Float[Tensor, " features"]
    """Its other factor."""

    def keep(self, mask: Tensor) -> "Estimates":
        """Those of the features alone that `mask` marks."""
        return self._replace(places=self.places[mask], of_feature=self.of_feature[mask])


class Found(NamedTuple):
    """What an encoder found."""

    code: Code
    values: Float[Tensor, " entries"]
    """Pre-activation of each entry, to the last bit but for the order of its sum."""
    estimates: Estimates | None = None
    """Of the features that were watched, by a backend that can."""


class Kernels(ABC):
    """What a backend provides. Dense arguments are contiguous; nothing here knows autograd."""

    name: str
    watches: ClassVar[bool] = False
    """Whether a search can leave estimates of features that are watched."""

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
        watched: Int[Tensor, " watched"] | None = None,
    ) -> Found:
        """The k largest of W x + b of each row that are above 0; exactly k a row, filled up with zeros.

        1 <= k <= d_sae. Estimates of the features `watched` are left over, from a backend that can.
        """

    @abstractmethod
    def above(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        floors: Float[Tensor, " d_sae"],
        most: int,
        watched: Int[Tensor, " watched"] | None = None,
    ) -> Found | None:
        """All of W x + b above the features' floors; None where these are more than `most`.

        Estimates of the features `watched` are left over, from a backend that can.
        """

    def largest_watched(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "watched d_in"],
        b: Float[Tensor, " watched"] | None,
        k: int,
        estimates: Estimates | None,
    ) -> Found:
        """The k largest of W x + b of each row, of either sign; 1 <= k <= watched.

        `estimates`, if there are any, are of these rows of W.
        """
        del estimates
        columns, values = self.largest_of(x @ W.t() if b is None else torch.addmm(b, x, W.t()), k)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Found(Code(offsets, columns.flatten(), len(W)), values.flatten())

    @abstractmethod
    def largest_of(self, z: Float[Tensor, "batch n"], k: int) -> tuple[Tensor, Tensor]:
        """Columns [batch, k] (int32, rising) and values of each row's k largest, of either sign; k <= n."""

    @abstractmethod
    def transpose(self, code: Code) -> Transposed:
        """The code by feature, tokens rising within each."""

    @abstractmethod
    def combine(
        self,
        code: Code,
        values: Float[Tensor, " entries"],
        dense: Float[Tensor, "columns d_in"],
    ) -> Float[Tensor, "rows d_in"]:
        """Sum over each row's entries of value x the dense row of its column."""

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
    shrink: Float[Tensor, ""] | None = None
    """Factor of the gradient, where it lies: of clipping."""
    tangent: bool = False
    """Whether the gradient's part along the row is taken out."""
    unit: str | None = None
    """`before` or `after`: when rows are set to norm 1; None: never."""
