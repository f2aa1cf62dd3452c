"""Which features a token keeps. One program has one row.

With |z - estimate| <= slack known, everything that may be among the k largest, or above a floor, is a
candidate; candidates are computed again in float32, and the choice is made among those.
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-(2**31))
"""Below what any float orders as."""


@triton.jit
def _ordered(values: tl.tensor) -> tl.tensor:
    """Integers in the order of the floats, 0 for 0."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _floats(ordered: tl.tensor) -> tl.tensor:
    """The floats that order as these integers."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _bar(keys: tl.tensor, k: int, FLOOR: tl.constexpr) -> tl.tensor:
    """What just k of the keys reach; the k-th largest, if others tie with it; FLOOR, if fewer are above.

    Halves the interval between floor and maximum: 32 times at most, about half as often where nothing ties.
    """
    low = tl.full([], FLOOR, tl.int32)  # k at least reach it, or it is the floor
    high = tl.max(keys, 0) + 1  # fewer reach it
    reached = k + 1
    while (reached != k) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
        reached = tl.sum((keys >= middle).to(tl.int32), 0)
        low = tl.where(reached >= k, middle, low)
        high = tl.where(reached >= k, high, middle)
    return low


@triton.jit
def _ranks(mask: tl.tensor) -> tl.tensor:
    """How many are marked before each."""
    ones = mask.to(tl.int32)
    return tl.cumsum(ones, 0) - ones


@triton.jit
def _estimates(z: tl.tensor, bias: tl.tensor | None, columns: tl.tensor, features: int) -> tl.tensor:
    """A row's W x + b at some columns; -inf beyond the last."""
    inside = columns < features
    estimate = tl.load(z + columns, mask=inside, other=float("-inf"))
    if bias is not None:
        estimate += tl.load(bias + columns, mask=inside, other=0.0)
    return estimate


@triton.jit
def _slack(
    norm: tl.tensor,
    error: tl.tensor,
    norms: tl.tensor,
    errors: tl.tensor,
    bias: tl.tensor | None,
    columns: tl.tensor,
    features: int,
) -> tl.tensor:
    """How far off the estimates may be: see `rows.narrow`."""
    inside = columns < features
    slack = norm * tl.load(errors + columns, mask=inside, other=0.0)
    slack += error * tl.load(norms + columns, mask=inside, other=0.0)
    if bias is not None:  # the sum with it is rounded, here and in the exact value
        slack += tl.abs(tl.load(bias + columns, mask=inside, other=0.0)) * 0.5**21
    return slack


@triton.jit
def _least_of_k(
    z: tl.tensor,
    bias: tl.tensor | None,
    norm: tl.tensor,
    error: tl.tensor,
    norms: tl.tensor,
    errors: tl.tensor,
    features: int,
    k: int,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """A number that k of the row's W x + b reach in truth; 0 or below: nothing is known."""
    row = _estimates(z, bias, tl.arange(0, BLOCK), features)
    threshold = _floats(_bar(_ordered(tl.where(row == row, row, float("-inf"))), k, 0))
    # k estimates reach the threshold, if it is above 0; in truth all these reach the least of their bounds
    least = tl.full([CHUNK], float("inf"), tl.float32)
    for first in range(0, features, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        estimate = _estimates(z, bias, columns, features)
        low = estimate - _slack(norm, error, norms, errors, bias, columns, features)
        low = tl.where(low == low, low, float("-inf"))
        least = tl.where(estimate >= threshold, tl.minimum(least, low), least)
    return tl.where(threshold > 0.0, tl.min(least, 0), 0.0)


@triton.jit(do_not_specialize=["k"])
def screen(
    z: tl.tensor,
    bias: tl.tensor | None,
    token_norms: tl.tensor,
    token_errors: tl.tensor,
    norms: tl.tensor,
    errors: tl.tensor,
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
    """Find the row's candidates: what may be above its floor or, without floors, among the k largest above 0.

    Args:
        z: the dense product [rows, features], without the bias.
        token_norms, token_errors, norms, errors: of the rows and of the features, from `rows.narrow`.
        starts, candidates: the features go to candidates[starts[row]:], rising; None: they are only counted.
        counts: how many they are.
        certain: how many of them are above their floors for sure.
        BLOCK: holds a row. CHUNK: divides it.
    """
    row = tl.program_id(0).to(tl.int64)
    z += row * features
    norm, error = tl.load(token_norms + row), tl.load(token_errors + row)
    bar = float("-inf")
    if floors is None:
        bar = _least_of_k(z, bias, norm, error, norms, errors, features, k, BLOCK, CHUNK)
    count = 0
    sure = 0
    for first in range(0, features, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        estimate = _estimates(z, bias, columns, features)
        slack = _slack(norm, error, norms, errors, bias, columns, features)
        floor = 0.0
        if floors is not None:
            floor = tl.load(floors + columns, mask=columns < features, other=0.0)
        # written so that what is no number is a candidate
        high = estimate + slack
        candidate = (columns < features) & ~((high <= floor) | (high < bar))
        if candidates is not None:
            place = tl.load(starts + row) + count + _ranks(candidate)
            tl.store(candidates + place, columns, mask=candidate)
        count += tl.sum(candidate.to(tl.int32), 0)
        if certain is not None:
            sure += tl.sum((estimate - slack > floor).to(tl.int32), 0)
    tl.store(counts + row, count)
    if certain is not None:
        tl.store(certain + row, sure)


@triton.jit
def _keys(values: tl.tensor, places: tl.tensor, count: int) -> tl.tensor:
    """Integers in the order of a row's values; the lowest of all beyond the last."""
    value = tl.load(values + places, mask=places < count, other=0.0)
    # NaN cannot be ordered; infinity spoils the loss just as well
    keys = _ordered(tl.where(value == value, value, float("inf")))
    return tl.where(places < count, keys, _LOWEST)


@triton.jit
def _bar_and_room(
    values: tl.tensor, count: int, k: int, FLOOR: tl.constexpr, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """What the k largest reach, and how many of them just reach it."""
    keys = _keys(values, tl.arange(0, BLOCK), count)
    bar = _bar(keys, k, FLOOR)
    return bar, k - tl.sum((keys > bar).to(tl.int32), 0)


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
    """The k largest of values[row, :counts[row]] with their columns, as they lie; of ties, the first.

    With POSITIVE only those above 0, and then zeros up to k. Without `columns` a value's place is its column,
    and without `counts` the row is full. Only rows of more than MORE_THAN and at most BLOCK values are done.
    """
    row = tl.program_id(0).to(tl.int64)
    floor: tl.constexpr = 0 if POSITIVE else _LOWEST
    count = width if counts is None else tl.load(counts + row)
    if (count > MORE_THAN) & (count <= BLOCK):
        values += row * width
        out_columns += row * k
        out_values += row * k
        bar, room = _bar_and_room(values, count, k, floor, BLOCK)
        found = 0
        ties = 0
        for first in range(0, count, CHUNK):
            places = first + tl.arange(0, CHUNK)
            keys = _keys(values, places, count)
            tied = keys == bar
            kept = (keys > floor) & ((keys > bar) | (tied & (ties + _ranks(tied) < room)))
            to = found + _ranks(kept)
            column = (
                places if columns is None else tl.load(columns + row * width + places, mask=kept, other=0)
            )
            tl.store(out_columns + to, column, mask=kept)
            tl.store(out_values + to, _floats(keys), mask=kept)
            found += tl.sum(kept.to(tl.int32), 0)
            ties += tl.sum(tied.to(tl.int32), 0)
        for first in range(0, k, CHUNK):
            places = first + tl.arange(0, CHUNK)
            unused = (places >= found) & (places < k)
            tl.store(out_columns + places, tl.zeros([CHUNK], tl.int32), mask=unused)
            tl.store(out_values + places, tl.zeros([CHUNK], tl.float32), mask=unused)
