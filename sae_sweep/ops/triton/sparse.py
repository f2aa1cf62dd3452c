"""Sparse products, one program per row of a CSR, which reads NONZEROS of its non-zeros at once.

Each output has one writer and each sum one order, so results have the same bits every time.
"""

import triton
import triton.language as tl


@triton.jit
def spmm(
    offsets: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    dense: tl.tensor,
    out: tl.tensor,
    width: int,
    NONZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sparse times dense: out[row] = sum over the row's non-zeros of value x dense[index]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    end = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(offsets + row), end, NONZEROS):
        p = first + tl.arange(0, NONZEROS)
        inside = p < end
        index = tl.load(indices + p, mask=inside, other=0).to(tl.int64)
        value = tl.load(values + p, mask=inside, other=0.0)
        tile = tl.load(
            dense + index[:, None] * width + columns[None, :],
            mask=inside[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        total += tl.sum(value[:, None] * tile, 0)
    tl.store(out + row * width + columns, total, mask=columns < width)


@triton.jit
def sddmm(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    bias: tl.tensor | None,
    out: tl.tensor,
    width: int,
    NONZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[p] = <left[row], right[index]> (+ bias[index]) for the non-zeros p in [starts[row], ends[row])."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    end = tl.load(ends + row)
    fixed = tl.load(left + row * width + columns, mask=columns < width, other=0.0)
    for first in range(tl.load(starts + row), end, NONZEROS):
        p = first + tl.arange(0, NONZEROS)
        inside = p < end
        index = tl.load(indices + p, mask=inside, other=0).to(tl.int64)
        tile = tl.load(
            right + index[:, None] * width + columns[None, :],
            mask=inside[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        value = tl.sum(fixed[None, :] * tile, 1)
        if bias is not None:
            value += tl.load(bias + index, mask=inside, other=0.0)
        tl.store(out + p, value, mask=inside)
