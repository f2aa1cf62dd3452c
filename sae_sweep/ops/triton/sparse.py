"""Sums over the entries of a code. One program has one row and goes through its entries, ENTRIES at a time.

No two programs write to one place, and each sum has one order, so results are the same bits every time.
"""

import triton
import triton.language as tl


@triton.jit
def combine(
    offsets: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    dense: tl.tensor,
    out: tl.tensor,
    width: int,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[row] = sum over the row's entries of value x dense[index]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    end = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(offsets + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        taken = entry < end
        index = tl.load(indices + entry, mask=taken, other=0).to(tl.int64)
        value = tl.load(values + entry, mask=taken, other=0.0)
        tile = tl.load(
            dense + index[:, None] * width + columns[None, :],
            mask=taken[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        total += tl.sum(value[:, None] * tile, 0)
    tl.store(out + row * width + columns, total, mask=columns < width)


@triton.jit
def products(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    bias: tl.tensor | None,
    out: tl.tensor,
    width: int,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[entry] = <left[row], right[index]> (+ bias[index]), of entries [starts[row], ends[row])."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    end = tl.load(ends + row)
    fixed = tl.load(left + row * width + columns, mask=columns < width, other=0.0)
    for first in range(tl.load(starts + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        taken = entry < end
        index = tl.load(indices + entry, mask=taken, other=0).to(tl.int64)
        tile = tl.load(
            right + index[:, None] * width + columns[None, :],
            mask=taken[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        value = tl.sum(fixed[None, :] * tile, 1)
        if bias is not None:
            value += tl.load(bias + index, mask=taken, other=0.0)
        tl.store(out + entry, value, mask=taken)
