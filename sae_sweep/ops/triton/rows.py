"""Programs that each work on one dense row: what is done to tokens, and to parameters.

Everywhere in this package, pointers are to contiguous memory, a row is as wide as the last number of its
shape says, and BLOCK is a power of two that holds what a program works on at a time.
"""

import triton
import triton.language as tl


@triton.jit
def normalise(x: tl.tensor, out: tl.tensor, width: int, eps: float, BLOCK: tl.constexpr) -> None:
    """(x - mean) / (std + eps) of each row [rows, width]."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = tl.program_id(0).to(tl.int64) * width + columns
    values = tl.load(x + places, mask=inside, other=0.0)
    centred = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    deviation = tl.sqrt_rn(tl.sum(centred * centred, 0) / (width - 1))
    tl.store(out + places, tl.div_rn(centred, deviation + eps), mask=inside)


@triton.jit
def narrow(
    x: tl.tensor, out: tl.tensor, norms: tl.tensor, errors: tl.tensor, width: int, BLOCK: tl.constexpr
) -> None:
    """Rows [rows, width] in the dtype of `out`, their norms, and how far products with them may be off.

    The product of narrow rows x' and w', with float32 sums, is off by at most norm(x) error(w) +
    error(x) norm(w): |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'| by Cauchy-Schwarz, 5% for |x'| > |x| and
    the rounding of these norms, and 2^-22 |x| |w| for each number summed, here and again in the exact value.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = row.to(tl.int64) * width + columns
    values = tl.load(x + places, mask=inside, other=0.0)
    rounded = values.to(out.dtype.element_ty)
    lost = values - rounded.to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(values * values, 0))
    tl.store(out + places, rounded, mask=inside)
    tl.store(norms + row, norm)
    tl.store(errors + row, 1.05 * tl.sqrt_rn(tl.sum(lost * lost, 0)) + norm * (width * 0.5**23))


@triton.jit
def _to_norm_1(row: tl.tensor) -> tl.tensor:
    return tl.div_rn(row, tl.sqrt_rn(tl.sum(row * row, 0)))


@triton.jit
def adam(
    weights: tl.tensor,
    gradient: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    width: int,
    rate: float,
    mean_share: float,
    keep: float,
    square_share: float,
    root: float,
    eps: float,
    shrink: tl.tensor | None,
    TANGENT: tl.constexpr,
    UNIT_BEFORE: tl.constexpr,
    UNIT_AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One step of Adam on rows [rows, width], in place; a program may have part of a row if it needs no norm.

    `rate` and `root` hold the bias corrections: lr / (1 - b1^t) and sqrt(1 - b2^t). `mean_share`, `keep` and
    `square_share` are 1 - b1, b2 and 1 - b2, the differences taken before they are rounded to float32.
    """
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    places = tl.program_id(0).to(tl.int64) * width + columns
    w = tl.load(weights + places, mask=inside, other=0.0)
    g = tl.load(gradient + places, mask=inside, other=0.0)
    if shrink is not None:
        g *= tl.load(shrink)
    m = tl.load(mean + places, mask=inside, other=0.0)
    v = tl.load(square + places, mask=inside, other=0.0)
    if UNIT_BEFORE:
        w = _to_norm_1(w)
    if TANGENT:
        g -= tl.sum(g * w, 0) * w
    m += mean_share * (g - m)
    v = keep * v + square_share * g * g
    w -= rate * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    if UNIT_AFTER:
        w = _to_norm_1(tl.where(inside, w, 0.0))
    tl.store(weights + places, w, mask=inside)
    tl.store(mean + places, m, mask=inside)
    tl.store(square + places, v, mask=inside)
