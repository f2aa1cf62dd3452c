"""Selection of the features that a token keeps, one program per row.

Given |z - estimate| <= z_error, every feature whose z may be among the k largest or above its floor is a
candidate. Candidates are computed again in float32, and the selection is made among those.
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-(2**31))
"""Orders below every float."""


@triton.jit
def _ordered(values: tl.tensor) -> tl.tensor:
    """Integers in the same order as the floats; 0 for 0."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _floats(ordered: tl.tensor) -> tl.tensor:
    """Inverse of `_ordered`."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _kth_largest(keys: tl.tensor, k: int, FLOOR: tl.constexpr) -> tl.tensor:
    """A number that exactly k keys reach; with ties the k-th largest; FLOOR if fewer than k exceed it.

    Bisects the interval from FLOOR to the maximum: at most 32 steps, about half as many without ties.
    """
    low = tl.full([], FLOOR, tl.int32)  # at least k keys reach it, unless it is FLOOR
    high = tl.max(keys, 0) + 1  # fewer than k keys reach it
    reached = k + 1
    while (reached != k) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
        reached = tl.sum((keys >= middle).to(tl.int32), 0)
        low = tl.where(reached >= k, middle, low)
        high = tl.where(reached >= k, high, middle)
    return low


@triton.jit
def _ranks(mask: tl.tensor) -> tl.tensor:
    """Number of marked elements before each element."""
    ones = mask.to(tl.int32)
    return tl.cumsum(ones, 0) - ones


@triton.jit
def _estimates(z: tl.tensor, bias: tl.tensor | None, columns: tl.tensor, features: int) -> tl.tensor:
    """A row's estimates of W x + b at some columns; -inf beyond the last."""
    inside = columns < features
    estimate = tl.load(z + columns, mask=inside, other=float("-inf"))
    if bias is not None:
        estimate += tl.load(bias + columns, mask=inside, other=0.0)
    return estimate


@triton.jit
def _z_errors(
    norm: tl.tensor,
    error_norm: tl.tensor,
    norms: tl.tensor,
    error_norms: tl.tensor,
    bias: tl.tensor | None,
    columns: tl.tensor,
    features: int,
) -> tl.tensor:
    """Error bounds of the estimates, as `rows.narrow` explains."""
    inside = columns < features
    z_errors = norm * tl.load(error_norms + columns, mask=inside, other=0.0)
    z_errors += error_norm * tl.load(norms + columns, mask=inside, other=0.0)
    if bias is not None:  # its sum is rounded, here and in the exact value
        z_errors += tl.abs(tl.load(bias + columns, mask=inside, other=0.0)) * 0.5**21
    return z_errors


@triton.jit
def _kth_largest_bound(
    z: tl.tensor,
    bias: tl.tensor | None,
    norm: tl.tensor,
    error_norm: tl.tensor,
    norms: tl.tensor,
    error_norms: tl.tensor,
    features: int,
    k: int,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """A lower bound of the k-th largest exact W x + b of the row; trivial if not above 0."""
    row = _estimates(z, bias, tl.arange(0, BLOCK), features)
    threshold = _floats(_kth_largest(_ordered(tl.where(row == row, row, float("-inf"))), k, 0))
    # if the threshold is above 0, k estimates reach it, so k exact values reach the least lower bound
    least = tl.full([CHUNK], float("inf"), tl.float32)
    for first in range(0, features, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        estimate = _estimates(z, bias, columns, features)
        low = estimate - _z_errors(norm, error_norm, norms, error_norms, bias, columns, features)
        low = tl.where(low == low, low, float("-inf"))
        least = tl.where(estimate >= threshold, tl.minimum(least, low), least)
    return tl.where(threshold > 0.0, tl.min(least, 0), 0.0)


@triton.jit(do_not_specialize=["k"])
def screen(
    z: tl.tensor,
    bias: tl.tensor | None,
    token_norms: tl.tensor,
    token_error_norms: tl.tensor,
    norms: tl.tensor,
    error_norms: tl.tensor,
    floors: tl.tensor | None,
    starts: tl.tensor | None,
    candidates: tl.tensor | None,
    counts: tl.tensor,
    certain: tl.tensor | None,
    features: int,
    k: int,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Find a row's candidates: features that may be above their floor or, without floors, in the top k.

    Args:
        z: the dense product [rows, features], without the bias.
        token_norms, token_error_norms, norms, error_norms: of tokens and features, from `rows.narrow`.
        floors: what each feature must exceed; None selects the k largest above 0.
        starts, candidates: features are written to candidates[starts[row]:], ascending; None: only counted.
        counts: number of candidates.
        certain: number of candidates that are certainly above their floors.
        BLOCK: at least the row's width. CHUNK: a divisor of BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    z += row * features
    norm, error_norm = tl.load(token_norms + row), tl.load(token_error_norms + row)
    kth_largest = float("-inf")
    if floors is None:
        kth_largest = _kth_largest_bound(
            z, bias, norm, error_norm, norms, error_norms, features, k, BLOCK, CHUNK
        )
    count = 0
    certain_count = 0
    for first in range(0, features, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        estimate = _estimates(z, bias, columns, features)
        z_errors = _z_errors(norm, error_norm, norms, error_norms, bias, columns, features)
        floor = 0.0
        if floors is not None:
            floor = tl.load(floors + columns, mask=columns < features, other=0.0)
        # negated comparisons, so that NaN is a candidate
        high = estimate + z_errors
        candidate = (columns < features) & ~((high <= floor) | (high < kth_largest))
        if candidates is not None:
            to = tl.load(starts + row) + count + _ranks(candidate)
            tl.store(candidates + to, columns, mask=candidate)
        count += tl.sum(candidate.to(tl.int32), 0)
        if certain is not None:
            certain_count += tl.sum((estimate - z_errors > floor).to(tl.int32), 0)
    tl.store(counts + row, count)
    if certain is not None:
        tl.store(certain + row, certain_count)


@triton.jit
def _keys(values: tl.tensor, at: tl.tensor, count: int) -> tl.tensor:
    """Integers in the order of a row's values; _LOWEST beyond the last."""
    value = tl.load(values + at, mask=at < count, other=0.0)
    # NaN cannot be ordered; infinity makes the loss non-finite just as well
    keys = _ordered(tl.where(value == value, value, float("inf")))
    return tl.where(at < count, keys, _LOWEST)


@triton.jit
def _kth_largest_and_ties(
    values: tl.tensor, count: int, k: int, FLOOR: tl.constexpr, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The key that the k largest reach, and how many of those k equal it."""
    keys = _keys(values, tl.arange(0, BLOCK), count)
    kth = _kth_largest(keys, k, FLOOR)
    return kth, k - tl.sum((keys > kth).to(tl.int32), 0)


@triton.jit(do_not_specialize=["k"])
def keep_largest(
    values: tl.tensor,
    columns: tl.tensor | None,
    counts: tl.tensor | None,
    out_columns: tl.tensor,
    out_values: tl.tensor,
    width: int,
    k: int,
    POSITIVE: tl.constexpr,
    MORE_THAN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Write the k largest of values[row, :counts[row]] with their columns, in order; the first of ties.

    POSITIVE keeps only values above 0 and pads with zeros to k. Without `columns` a value's index is its
    column, and without `counts` the row is full. Rows with at most MORE_THAN or more than BLOCK values are
    skipped.
    """
    row = tl.program_id(0).to(tl.int64)
    floor: tl.constexpr = 0 if POSITIVE else _LOWEST
    count = width if counts is None else tl.load(counts + row)
    if (count > MORE_THAN) & (count <= BLOCK):
        values += row * width
        out_columns += row * k
        out_values += row * k
        kth, ties_kept = _kth_largest_and_ties(values, count, k, floor, BLOCK)
        found = 0
        ties = 0
        for first in range(0, count, CHUNK):
            at = first + tl.arange(0, CHUNK)
            keys = _keys(values, at, count)
            tied = keys == kth
            kept = (keys > floor) & ((keys > kth) | (tied & (ties + _ranks(tied) < ties_kept)))
            to = found + _ranks(kept)
            column = at if columns is None else tl.load(columns + row * width + at, mask=kept, other=0)
            tl.store(out_columns + to, column, mask=kept)
            tl.store(out_values + to, _floats(keys), mask=kept)
            found += tl.sum(kept.to(tl.int32), 0)
            ties += tl.sum(tied.to(tl.int32), 0)
        for first in range(0, k, CHUNK):
            at = first + tl.arange(0, CHUNK)
            padding = (at >= found) & (at < k)
            tl.store(out_columns + at, tl.zeros([CHUNK], tl.int32), mask=padding)
            tl.store(out_values + at, tl.zeros([CHUNK], tl.float32), mask=padding)
