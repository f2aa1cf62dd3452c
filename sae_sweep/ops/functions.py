"""Encoder, decoder and squared error over sparse latents, with their gradients.

The gradient of a dictionary sums each feature's non-zeros in order of token, without atomics, so it has the
same bits every time.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.ops.csr import CSR, Transposed
from sae_sweep.ops.interface import Kernels


class SparsePattern:
    """The CSR pattern of a batch's latents, with the kernels that work on it and a cached transpose."""

    def __init__(self, kernels: Kernels, csr: CSR, features: Int[Tensor, " columns"] | None = None) -> None:
        """Bind `csr`, whose columns are all features, or the distinct ones listed in `features`."""
        self.kernels = kernels
        self.csr = csr
        self._features = features

    @property
    def covers_all(self) -> bool:
        """Whether the columns are all features."""
        return self._features is None

    @cached_property
    def transposed(self) -> Transposed:
        """Rows are the pattern's features, columns the tokens."""
        return self.kernels.transpose(self.csr)

    def select_rows(self, dictionary: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "columns d_in"]:
        """The dictionary's rows of the pattern's features."""
        return dictionary if self._features is None else dictionary.index_select(0, self._features)

    def add_to(self, total: Tensor | None, part: Tensor) -> Tensor:
        """Add numbers of the pattern's features, in place, to those of all features."""
        if self._features is None:
            return part if total is None else total.add_(part)
        if total is None:
            raise ValueError("the first pattern must be one over all features")
        return total.index_add_(0, self._features, part)

    def reorder(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        """Values of the non-zeros in the order of `transposed`."""
        return values.gather(0, self.transposed.permutation)

    def sum_by_feature(self, reordered: Float[Tensor, " nnz"]) -> Float[Tensor, " columns"]:
        """Sum of each feature's reordered values."""
        return torch.segment_reduce(reordered, "sum", offsets=self.transposed.csr.offsets, initial=0.0)


SparseMatrix = tuple[SparsePattern, Float[Tensor, " _nnz"]]
"""A pattern and the values of its non-zeros."""


def pre_activations(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"] | None,
    b_dec: Float[Tensor, " d_in"] | None,
    found: Sequence[SparseMatrix],
) -> list[Float[Tensor, " _nnz"]]:
    """Connect pre-activations that a search has found to the encoder's parameters.

    Args:
        x: the encoder's input, a constant; if `b_dec` was subtracted from it, pass `b_dec` too.
        W_enc: its transpose is contiguous.
        b_enc: the encoder's bias, if it has one.
        b_dec: receives the gradient that flows through x.
        found: patterns, the first over all features, with the values that the search computed.
    """
    patterns = [pattern for pattern, _ in found]
    return list(_PreActivations.apply(patterns, x, W_enc, b_enc, b_dec, *(values for _, values in found)))


def decode(
    latents: Sequence[SparseMatrix], W_dec: Float[Tensor, "d_sae d_in"]
) -> list[Float[Tensor, "batch d_in"]]:
    """Decode each of several sparse latents, without a bias; the first pattern is over all features."""
    patterns = [pattern for pattern, _ in latents]
    return list(_Decode.apply(patterns, W_dec, *(values for _, values in latents)))


def gather_columns(pattern: SparsePattern, by_feature: Float[Tensor, " d_sae"]) -> Float[Tensor, " nnz"]:
    """The number of each non-zero's feature, for a pattern over all features."""
    return cast(Tensor, _GatherColumns.apply(pattern, by_feature))


def mean_square(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean of the squares; forward and backward read x once each."""
    return cast(Tensor, _MeanSquare.apply(x))


def tilted_mean(losses: Float[Tensor, " batch"], tilt: float) -> Float[Tensor, ""]:
    """(1 / t) log(mean(exp(t x losses))): their mean as t -> 0, their maximum as t -> infinity (TERM).

    Stable at both ends: nothing overflows at a large tilt, and nothing cancels at a small one.
    """
    constant = losses.detach()
    top = constant.max()
    value = top + torch.expm1(tilt * (constant - top)).mean().log1p() / tilt
    weights = torch.softmax(tilt * (constant - top), 0)
    linear = weights @ losses  # has the gradient, which is the weights
    return value + (linear - linear.detach())


@torch.no_grad()
def total_variance(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean over d_in of the biased variance over the batch; `x.var(dim=0)` is slow on a CPU."""
    return (x - x.mean(dim=0)).square_().mean()


def _dictionary_gradient(
    patterns: Sequence[SparsePattern], reordered: Sequence[Tensor], dense: Sequence[Tensor]
) -> Tensor | None:
    """Gradient [d_sae, d_in]: the sum over each feature's non-zeros of value x its token's dense row."""
    total = None
    for pattern, values, rows in zip(patterns, reordered, dense, strict=True):
        total = pattern.add_to(total, pattern.kernels.spmm(pattern.transposed.csr, values, rows))
    return total


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        patterns: list[SparsePattern],
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor | None,
        b_dec: Tensor | None,
        *found: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, W_enc)
        ctx.patterns = patterns
        return tuple(values.clone() for values in found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, W_enc = ctx.saved_tensors
        grads = tuple(pattern.reorder(grad) for pattern, grad in zip(ctx.patterns, grads, strict=True))
        rows = _dictionary_gradient(ctx.patterns, grads, [x] * len(grads))
        needs_b_enc, needs_b_dec = ctx.needs_input_grad[3:5]
        b_enc = b_dec = None
        if needs_b_enc or needs_b_dec:
            for pattern, grad in zip(ctx.patterns, grads, strict=True):
                b_enc = pattern.add_to(b_enc, pattern.sum_by_feature(grad))
            b_dec = -(W_enc @ b_enc) if needs_b_dec else None
        nothing = (None,) * len(grads)
        return None, None, None if rows is None else rows.t(), b_enc if needs_b_enc else None, b_dec, *nothing


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, patterns: list[SparsePattern], W_dec: Tensor, *latents: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(W_dec, *latents)
        ctx.patterns = patterns
        return tuple(
            pattern.kernels.spmm(pattern.csr, values, pattern.select_rows(W_dec))
            for pattern, values in zip(patterns, latents, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        W_dec, *latents = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        reordered = [pattern.reorder(values) for pattern, values in zip(ctx.patterns, latents, strict=True)]
        rows = _dictionary_gradient(ctx.patterns, reordered, grads)
        to_latents = [
            pattern.kernels.sddmm(pattern.csr, grad, pattern.select_rows(W_dec))
            for pattern, grad in zip(ctx.patterns, grads, strict=True)
        ]
        return None, rows, *to_latents


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: SparsePattern, by_feature: Tensor) -> Tensor:
        if not pattern.covers_all or by_feature.shape != (pattern.csr.columns,):
            raise ValueError(
                f"gather_columns: by_feature is {list(by_feature.shape)}, and must have a number for each of "
                f"the pattern's {pattern.csr.columns} columns, which must be all features"
            )
        ctx.pattern = pattern
        return by_feature[pattern.csr.indices]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.pattern.sum_by_feature(ctx.pattern.reorder(grad))


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        flat = x.flatten()
        return torch.dot(flat, flat) / x.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (grad * (2 / x.numel()))
