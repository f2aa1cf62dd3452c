"""Sums over the entries of a code. One program has one row and goes through its entries, ENTRIES at a time.

No two programs write to one place, and each sum has one order, so results are the same bits every time.
"""

import triton
import triton.language as tl


@triton.jit
def combine(
    offsets: tl.tensor,
    indices: tl.tensor,
    places: tl.tensor | None,
    values: tl.tensor,
    dense: tl.tensor,
    out: tl.tensor,
    width: int,
    ONTO: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[row] = sum over the row's entries of value x dense[index]; with ONTO, added to what is there."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    end = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(offsets + row), end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        taken = entry < end
        index = tl.load(indices + entry, mask=taken, other=0).to(tl.int64)
        place = entry if places is None else tl.load(places + entry, mask=taken, other=0)
        value = tl.load(values + place, mask=taken, other=0.0)
        tile = tl.load(
            dense + index[:, None] * width + columns[None, :],
            mask=taken[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        total += tl.sum(value[:, None] * tile, 0)
    to = out + row * width + columns
    if ONTO:
        total += tl.load(to, mask=columns < width, other=0.0)
    tl.store(to, total, mask=columns < width)


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
