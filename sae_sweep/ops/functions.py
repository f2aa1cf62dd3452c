"""Encoder, decoder and squared error over sparse codes, with their gradients.

Gradients of the dictionaries are sums over each feature's entries, in order of token: no atomics, so they are
the same bits every time.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.ops.code import Code, Kernels, Transposed


class Sparse:
    """One batch's code with the kernels that work on it; its transpose is made once."""

    def __init__(self, kernels: Kernels, code: Code, features: Int[Tensor, " columns"] | None = None) -> None:
        """Columns of `code` are all features, or those that `features` names, each once."""
        self.kernels = kernels
        self.code = code
        self._features = features
        self._by_feature: Transposed | None = None

    @property
    def covers_all(self) -> bool:
        """Whether the columns are all features."""
        return self._features is None

    def rows_of(self, dictionary: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "columns d_in"]:
        """The rows of the code's features."""
        return dictionary if self._features is None else dictionary.index_select(0, self._features)

    def add_to(self, total: Tensor | None, part: Tensor) -> Tensor:
        """Numbers of the code's features, added in place to those of all features."""
        if self._features is None:
            return part if total is None else total.add_(part)
        assert total is not None  # the code of all features goes first
        return total.index_add_(0, self._features, part)

    @property
    def by_feature(self) -> Code:
        """Rows are the code's features, columns the tokens."""
        return self._transposed().code

    def _transposed(self) -> Transposed:
        if self._by_feature is None:
            self._by_feature = self.kernels.transpose(self.code)
        return self._by_feature

    def reordered(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """Numbers of the entries, in the order of `by_feature`."""
        return values.gather(0, self._transposed().places)

    def sum_by_feature(self, reordered: Float[Tensor, " entries"]) -> Float[Tensor, " columns"]:
        """Sum of the entries of each of the code's features."""
        return torch.segment_reduce(reordered, "sum", offsets=self.by_feature.offsets, initial=0.0)


def pre_activations(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"] | None,
    b_dec: Float[Tensor, " d_in"] | None,
    entries: Sequence[tuple[Sparse, Float[Tensor, " _entries"]]],
) -> list[Float[Tensor, " _entries"]]:
    """Pre-activations of the entries of several codes, connected to the encoder's parameters.

    Args:
        x: what the encoder multiplies, a constant; where it had `b_dec` taken off, pass that too.
        W_enc: its transpose is contiguous.
        b_enc: the encoder's bias, if it has one.
        b_dec: receives the gradient that flows through x.
        entries: codes, the first over all features, and the values that were computed when they were found.
    """
    codes = [sparse for sparse, _ in entries]
    return list(_PreActivations.apply(codes, x, W_enc, b_enc, b_dec, *(values for _, values in entries)))


def decode(
    entries: Sequence[tuple[Sparse, Float[Tensor, " _entries"]]], W_dec: Float[Tensor, "d_sae d_in"]
) -> list[Float[Tensor, "batch d_in"]]:
    """What several codes' latents decode to, each, without a bias; the first code is over all features."""
    codes = [sparse for sparse, _ in entries]
    return list(_Decode.apply(codes, W_dec, *(values for _, values in entries)))


def spread(sparse: Sparse, by_feature: Float[Tensor, " d_sae"]) -> Float[Tensor, " entries"]:
    """The number of each entry's feature, of a code over all features."""
    return cast(Tensor, _Spread.apply(sparse, by_feature))


def mean_square(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean of the squares, read once in each direction."""
    return cast(Tensor, _MeanSquare.apply(x))


@torch.no_grad()
def total_variance(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean over d_in of the variance over the batch (its divisor); `x.var(dim=0)` is slow on a CPU."""
    return (x - x.mean(dim=0)).square_().mean()


def _gradient(codes: Sequence[Sparse], values: Sequence[Tensor], dense: Sequence[Tensor]) -> Tensor | None:
    """Of a dictionary [d_sae, d_in]: each feature's entries, reordered, times their tokens' dense rows."""
    total = None
    for sparse, of_code, rows in zip(codes, values, dense, strict=True):
        total = sparse.add_to(total, sparse.kernels.combine(sparse.by_feature, of_code, rows))
    return total


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        codes: list[Sparse],
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor | None,
        b_dec: Tensor | None,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, W_enc)
        ctx.codes = codes
        return tuple(of_code.clone() for of_code in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, W_enc = ctx.saved_tensors
        grads = tuple(sparse.reordered(grad) for sparse, grad in zip(ctx.codes, grads, strict=True))
        rows = _gradient(ctx.codes, grads, [x] * len(grads))
        needs_b_enc, needs_b_dec = ctx.needs_input_grad[3:5]
        b_enc = b_dec = None
        if needs_b_enc or needs_b_dec:
            for sparse, grad in zip(ctx.codes, grads, strict=True):
                b_enc = sparse.add_to(b_enc, sparse.sum_by_feature(grad))
            b_dec = -(W_enc @ b_enc) if needs_b_dec else None
        nothing = (None,) * len(grads)
        return None, None, None if rows is None else rows.t(), b_enc if needs_b_enc else None, b_dec, *nothing


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: list[Sparse], W_dec: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(W_dec, *values)
        ctx.codes = codes
        return tuple(
            sparse.kernels.combine(sparse.code, of_code, sparse.rows_of(W_dec))
            for sparse, of_code in zip(codes, values, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        W_dec, *values = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        values = [sparse.reordered(of_code) for sparse, of_code in zip(ctx.codes, values, strict=True)]
        rows = _gradient(ctx.codes, values, grads)
        of_values = [
            sparse.kernels.products(sparse.code, grad, sparse.rows_of(W_dec))
            for sparse, grad in zip(ctx.codes, grads, strict=True)
        ]
        return None, rows, *of_values


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sparse: Sparse, by_feature: Tensor) -> Tensor:
        assert sparse.covers_all
        ctx.sparse = sparse
        return by_feature[sparse.code.indices]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.sparse.sum_by_feature(ctx.sparse.reordered(grad))


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
