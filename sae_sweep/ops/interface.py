"""The interface of the kernels: what every backend computes, and with which types."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.ops.checks import INT32_LIMIT, Check
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

    Each method checks its arguments, shapes, dtypes, devices and ranges, and raises ValueError with one line
    that names the kernel and the argument; the backend's own method, of the same name behind an underscore,
    can rely on that. Numbers that are not finite are allowed everywhere: the first of equal values is the
    larger one, and a value that is NaN counts as infinite: the loss becomes non-finite either way.
    """

    name: str
    leaves_estimates: ClassVar[bool] = False
    """Whether a search can leave estimates of the dead candidates."""
    device_type: str | None = None
    """Type of the device that tensors are on; None: any."""
    dtype: torch.dtype | None = None
    """Dtype of all floats; None: any."""

    def normalise(self, x: Float[Tensor, "batch d_in"], eps: float) -> Float[Tensor, "batch d_in"]:
        """(x - mean) / (std + eps) per row, with the unbiased std."""
        self._check("normalise").floats("x", x, None, None)
        return self._normalise(x, eps)

    def encode_topk(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_sae d_in"],
        b: Float[Tensor, " d_sae"] | None,
        k: int,
        dead_candidates: Int[Tensor, " candidates"] | None = None,
    ) -> Encoded:
        """The k largest of W x + b per row that are above 0, padded to exactly k with zeros at column 0.

        1 <= k <= d_sae. A backend that `leaves_estimates` does so for `dead_candidates` (int64).
        """
        check = self._check("encode_topk")
        self._check_encoder(check, x, W, b, dead_candidates)
        check.number("k", k, 1, len(W))
        return self._encode_topk(x, W, b, k, dead_candidates)

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

        A backend that `leaves_estimates` does so for `dead_candidates` (int64).
        """
        check = self._check("encode_above")
        self._check_encoder(check, x, W, b, dead_candidates)
        check.floats("floors", floors, len(W))
        check.number("max_nnz", max_nnz, 0)
        return self._encode_above(x, W, b, floors, max_nnz, dead_candidates)

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
        check = self._check("encode_dead_topk")
        self._check_encoder(check, x, W, b, None)
        check.number("k", k, 1, len(W))
        if estimates is not None:
            _, stride = check.floats("estimates.values", estimates.values, len(x), None)
            check.indices("estimates.columns", estimates.columns, torch.int32, len(W), stride)
            check.floats("estimates.error_per_norm", estimates.error_per_norm, len(x))
            check.floats("estimates.norm_bounds", estimates.norm_bounds, len(W))
        return self._encode_dead_topk(x, W, b, k, estimates)

    def topk(
        self, z: Float[Tensor, "batch n"], k: int
    ) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
        """Columns (int32, ascending) and values of the k largest per row, of either sign; 1 <= k <= n."""
        check, z = self._check("topk"), z.contiguous()
        _, width = check.floats("z", z, None, None)
        check.number("columns of z", width, 1, INT32_LIMIT - 1)
        check.number("k", k, 1, width)
        return self._topk(z, k)

    def transpose(self, csr: CSR) -> Transposed:
        """The transpose; its column indices ascend within each row."""
        self._check("transpose").placed("csr", csr.offsets)
        return self._transpose(csr)

    def spmm(
        self, csr: CSR, values: Float[Tensor, " nnz"], dense: Float[Tensor, "columns d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """Sparse times dense matrix: per row, the sum over its non-zeros of value x dense[column]."""
        check = self._check("spmm")
        check.placed("csr", csr.offsets)
        check.floats("values", values, csr.nnz)
        check.floats("dense", dense, csr.columns, None)
        return self._spmm(csr, values, dense)

    def sddmm(
        self, csr: CSR, left: Float[Tensor, "rows d_in"], right: Float[Tensor, "columns d_in"]
    ) -> Float[Tensor, " nnz"]:
        """Sampled dense-dense product: the dot product of left[row] and right[column] per non-zero."""
        check = self._check("sddmm")
        check.placed("csr", csr.offsets)
        _, width = check.floats("left", left, csr.rows, None)
        check.floats("right", right, csr.columns, width)
        return self._sddmm(csr, left, right)

    def adam(
        self,
        weights: Float[Tensor, "rows d"],
        gradient: Float[Tensor, "rows d"],
        moments: tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]],
        update: "AdamUpdate",
    ) -> None:
        """One step of Adam, in place."""
        check = self._check("adam")
        shape = check.floats("weights", weights, None, None)
        for name, tensor in zip(("gradient", "moments[0]", "moments[1]"), (gradient, *moments), strict=True):
            check.floats(name, tensor, *shape)
        if update.gradient_scale is not None:
            check.floats("gradient_scale", update.gradient_scale)
        check.number("step", update.step, 1)
        check.choice("unit_rows", update.unit_rows, (None, "before", "after"))
        self._adam(weights, gradient, moments, update)

    def _check(self, kernel: str) -> Check:
        return Check(kernel, self.device_type, self.dtype)

    def _check_encoder(
        self, check: Check, x: Tensor, W: Tensor, b: Tensor | None, dead_candidates: Tensor | None
    ) -> None:
        _, width = check.floats("x", x, None, None)
        features, _ = check.floats("W", W, None, width)
        check.number("rows of W", features, 0, INT32_LIMIT - 1)
        if b is not None:
            check.floats("b", b, features)
        if dead_candidates is not None and self.leaves_estimates:
            check.indices("dead_candidates", dead_candidates, torch.int64, None, features)

    @abstractmethod
    def _normalise(self, x: Tensor, eps: float) -> Tensor: ...

    @abstractmethod
    def _encode_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, dead_candidates: Tensor | None
    ) -> Encoded: ...

    @abstractmethod
    def _encode_above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        max_nnz: int,
        dead_candidates: Tensor | None,
    ) -> Encoded | None: ...

    def _encode_dead_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, estimates: Estimates | None
    ) -> Encoded:
        del estimates
        columns, values = self._topk(x @ W.t() if b is None else torch.addmm(b, x, W.t()), k)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Encoded(CSR(offsets, columns.flatten(), len(W), from_kernel=True), values.flatten())

    @abstractmethod
    def _topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _transpose(self, csr: CSR) -> Transposed: ...

    @abstractmethod
    def _spmm(self, csr: CSR, values: Tensor, dense: Tensor) -> Tensor: ...

    @abstractmethod
    def _sddmm(self, csr: CSR, left: Tensor, right: Tensor) -> Tensor: ...

    @abstractmethod
    def _adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: "AdamUpdate"
    ) -> None: ...


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
