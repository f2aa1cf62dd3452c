"""Kernels on dense rows, one program per row: normalisation, rounding, Adam.

In this package, pointers are to contiguous memory, the last number of a shape is a row's width, and BLOCK
is a power of two that holds what a program works on at once.
"""

import triton
import triton.language as tl


@triton.jit
def normalise(x: tl.tensor, out: tl.tensor, width: int, eps: float, BLOCK: tl.constexpr) -> None:
    """(x - mean) / (std + eps) per row [rows, width]."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    values = tl.load(x + at, mask=inside, other=0.0)
    centred = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    deviation = tl.sqrt_rn(tl.sum(centred * centred, 0) / (width - 1))
    tl.store(out + at, tl.div_rn(centred, deviation + eps), mask=inside)


@triton.jit
def narrow(
    x: tl.tensor, out: tl.tensor, norms: tl.tensor, error_norms: tl.tensor, width: int, BLOCK: tl.constexpr
) -> None:
    """Round rows [rows, width] to the dtype of `out`, with norms that bound the error of their products.

    The product of rounded rows x' and w', with float32 sums, has an error of at most norm(x) error_norm(w)
    + error_norm(x) norm(w). By Cauchy-Schwarz |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'|; the bound adds
    5% for |x'| > |x| and the rounding of these norms, and 2^-22 |x| |w| per number summed, here and in the
    exact value.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row.to(tl.int64) * width + columns
    values = tl.load(x + at, mask=inside, other=0.0)
    rounded = values.to(out.dtype.element_ty)
    rounding = values - rounded.to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(values * values, 0))
    tl.store(out + at, rounded, mask=inside)
    tl.store(norms + row, norm)
    error_norm = 1.05 * tl.sqrt_rn(tl.sum(rounding * rounding, 0)) + norm * (width * 0.5**23)
    tl.store(error_norms + row, error_norm)


@triton.jit
def _normalised(row: tl.tensor) -> tl.tensor:
    return tl.div_rn(row, tl.sqrt_rn(tl.sum(row * row, 0)))


@triton.jit
def adam(
    weights: tl.tensor,
    gradient: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    width: int,
    rate: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    root: float,
    eps: float,
    gradient_scale: tl.tensor | None,
    TANGENT: tl.constexpr,
    UNIT_BEFORE: tl.constexpr,
    UNIT_AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One Adam step on rows [rows, width], in place; a program may take part of a row if it needs no norm.

    `rate` and `root` include the bias corrections: lr / (1 - beta1^t) and sqrt(1 - beta2^t).
    `one_minus_beta1` and `one_minus_beta2` are separate arguments because they are rounded to float32 after
    the subtraction.
    """
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    w = tl.load(weights + at, mask=inside, other=0.0)
    g = tl.load(gradient + at, mask=inside, other=0.0)
    if gradient_scale is not None:
        g *= tl.load(gradient_scale)
    m = tl.load(mean + at, mask=inside, other=0.0)
    v = tl.load(square + at, mask=inside, other=0.0)
    if UNIT_BEFORE:
        w = _normalised(w)
    if TANGENT:
        g -= tl.sum(g * w, 0) * w
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    w -= rate * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    if UNIT_AFTER:
        w = _normalised(tl.where(inside, w, 0.0))
    tl.store(weights + at, w, mask=inside)
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
