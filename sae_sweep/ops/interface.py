"""The interface of the kernels: what every backend computes, and with which types."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.ops.csr import CSR, Transposed


class Estimates(NamedTuple):
    """Low-precision products of tokens and dead candidates, left over from a search."""

    values: Float[Tensor, "batch stride"]
    """In scratch memory, which the next search overwrites."""
    columns: Int[Tensor, " candidates"]
    """int32: the column of `values` that holds each candidate."""
    error_per_norm: Float[Tensor, " batch"]
    """The error of token t with candidate c is at most error_per_norm[t] x norm_bounds[c]."""
    norm_bounds: Float[Tensor, " candidates"]
    """Upper bound of the norm of each candidate's encoder row; infinite if there is none."""

    def keep(self, mask: Bool[Tensor, " candidates"]) -> "Estimates":
        """The estimates of only the candidates that `mask` marks."""
        return self._replace(columns=self.columns[mask], norm_bounds=self.norm_bounds[mask])


class Encoded(NamedTuple):
    """Pre-activations that an encoder kept."""

    csr: CSR
    values: Float[Tensor, " nnz"]
    """Pre-activation of each non-zero: exact in float32, up to summation order."""
    estimates: Estimates | None = None
    """Estimates for the dead candidates, if the backend leaves them."""


class Kernels(ABC):
    """What a backend provides. Dense arguments are contiguous, and nothing here knows autograd.

    The first of equal values is the larger one, and a value that is NaN counts as infinite: the loss becomes
    non-finite either way.
    """

    name: str
    leaves_estimates: ClassVar[bool] = False
    """Whether a search can leave estimates of the dead candidates."""

    @abstractmethod
    def normalise(self, x: Float[Tensor, "batch d_in"], eps: float) -> Float[Tensor, "batch d_in"]:
        """(x - mean) / (std + eps) per row, with the unbiased std."""

    @abstractmethod
    def encode_topk(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        k: int,
        dead_candidates: Int[Tensor, " candidates"] | None = None,
    ) -> Encoded:
        """The k largest of W x + b per row that are above 0, padded to exactly k with zeros at column 0.

        1 <= k <= d_sae. A backend that `leaves_estimates` does so for `dead_candidates`.
        """

    @abstractmethod
    def encode_above(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        floors: Float[Tensor, " d_sae"],
        max_nnz: int,
        dead_candidates: Int[Tensor, " candidates"] | None = None,
    ) -> Encoded | None:
        """All of W x + b above the features' floors, or None if there are more than `max_nnz`.

        A backend that `leaves_estimates` does so for `dead_candidates`.
        """

    def encode_dead_topk(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "dead d_in"],
        b: Float[Tensor, " dead"] | None,
        k: int,
        estimates: Estimates | None,
    ) -> Encoded:
        """The k largest of W x + b per row, of either sign; 1 <= k <= dead.

        `estimates`, if given, are those of these rows of W.
        """
        del estimates
        columns, values = self.topk(x @ W.t() if b is None else torch.addmm(b, x, W.t()), k)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Encoded(CSR(offsets, columns.flatten(), len(W)), values.flatten())

    @abstractmethod
    def topk(
        self, z: Float[Tensor, "batch n"], k: int
    ) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
        """Columns (int32, ascending) and values of the k largest per row, of either sign; k <= n."""

    @abstractmethod
    def transpose(self, csr: CSR) -> Transposed:
        """The transpose; its column indices ascend within each row."""

    @abstractmethod
    def spmm(
        self, csr: CSR, values: Float[Tensor, " nnz"], dense: Float[Tensor, "columns d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """Sparse times dense matrix: per row, the sum over its non-zeros of value x dense[column]."""

    @abstractmethod
    def sddmm(
        self, csr: CSR, left: Float[Tensor, "rows d_in"], right: Float[Tensor, "columns d_in"]
    ) -> Float[Tensor, " nnz"]:
        """Sampled dense-dense product: the dot product of left[row] and right[column] per non-zero."""

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
    """Parameters of one Adam step (Kingma and Ba 2015) and of the row normalisation around it."""

    lr: float
    betas: tuple[float, float]
    eps: float
    step: int
    """Counts from 1, as in the bias corrections."""
    gradient_scale: Float[Tensor, ""] | None = None
    """Factor of the gradient, from clipping, on the gradient's device."""
    tangent: bool = False
    """Whether the gradient's component along its row is removed."""
    unit_rows: Literal["before", "after"] | None = None
    """Whether rows are set to norm 1 before or after the step; None: neither."""
