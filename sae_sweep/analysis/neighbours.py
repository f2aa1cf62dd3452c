"""The nearest features of two dictionaries in both directions, from one product of their rows in blocks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.config import SaeSweepError

THRESHOLDS = tuple(round(0.3 + i * 0.01, 2) for i in range(70))
"""Thresholds of a curve, 0.3 to 0.99, so that no conclusion hangs on one of them."""
_BLOCK_ELEMENTS = 1 << 25
"""Cosines in memory at once: 128 MiB of float32."""
_TILE = 32
"""Cosines that are reduced to their largest before the best ones are looked for."""
_LAST = 0xFFFF_FFFF


class Nearest(NamedTuple):
    """The best `most` rows of the other dictionary for every row, best first (fewer if it has fewer).

    Of equal cosines the row of the lower number comes first.
    """

    cosines_a: Float[Tensor, "n_a best_a"]
    index_a: Int[Tensor, "n_a best_a"]
    """Rows of b."""
    cosines_b: Float[Tensor, "n_b best_b"]
    index_b: Int[Tensor, "n_b best_b"]
    """Rows of a."""

    @property
    def mmcs_a_to_b(self) -> float:
        """Mean over a's rows of the best cosine among b's (Sharkey et al. 2022)."""
        return self.cosines_a[:, 0].double().mean().item()

    @property
    def mmcs_b_to_a(self) -> float:
        return self.cosines_b[:, 0].double().mean().item()


class Mutual(NamedTuple):
    """Pairs of rows each of which is the other's nearest, in the order of a's rows."""

    a: Int[Tensor, " pairs"]
    b: Int[Tensor, " pairs"]
    cosines: Float[Tensor, " pairs"]


class Curve(NamedTuple):
    """Share of features that have a match, against the threshold; with its 95 % interval over features."""

    thresholds: Float[Tensor, " thresholds"]
    share: Float[Tensor, " thresholds"]
    low: Float[Tensor, " thresholds"]
    high: Float[Tensor, " thresholds"]


def nearest(
    unit_a: Float[Tensor, "n_a width"],
    unit_b: Float[Tensor, "n_b _"],
    most: int = 1,
    *,
    absolute: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Nearest:
    """Find the `most` rows of the highest cosine for each row of either dictionary.

    Args:
        unit_a: rows of length 1, as of `rows_of`; everything is computed on their device.
        unit_b: likewise.
        most: rows to find per row.
        absolute: whether opposite directions are alike, so that the size of a cosine counts.
        between: called between blocks, to obey a stop.

    Never holds more than a block of the cosines.

    Raises:
        SaeSweepError: for dictionaries without rows or of different widths, or `most` below 1.
    """
    unit_a, unit_b = comparable(unit_a, unit_b)
    if most < 1:
        raise SaeSweepError(f"matching: most={most} must be at least 1")
    best_a, best_b = min(most, len(unit_b)), min(most, len(unit_a))
    rows, tops = _block_rows(len(unit_a), len(unit_b)), []
    buffer = unit_a.new_full((rows, -(-len(unit_b) // _TILE) * _TILE), -torch.inf)
    keys_b = unit_a.new_empty((len(unit_b), 0), dtype=torch.int64)
    for start in range(0, len(unit_a), rows):
        between()
        part = unit_a[start : start + rows]
        buffer[len(part) :] = -torch.inf
        cosines = torch.mm(part, unit_b.T, out=buffer[: len(part), : len(unit_b)])
        if absolute:
            cosines.abs_()
        tops.append(_best_of_rows(buffer, best_a)[: len(part)])
        found = _best_of_columns(buffer, min(best_b, len(part)), start)[: len(unit_b)]
        keys_b = torch.cat([keys_b, found], 1)
        keys_b = keys_b.topk(min(best_b, keys_b.shape[1]), dim=1).values
    return Nearest(*_unpack(torch.cat(tops)), *_unpack(keys_b))


def comparable(
    unit_a: Float[Tensor, "n_a width"], unit_b: Float[Tensor, "n_b _"]
) -> tuple[Float[Tensor, "n_a width"], Float[Tensor, "n_b width"]]:
    """Bring two dictionaries to a's device as float32, or refuse those that cannot be compared."""
    if not (len(unit_a) and len(unit_b)):
        raise SaeSweepError("matching: a dictionary has no features that could be matched")
    if unit_a.shape[1] != unit_b.shape[1]:
        raise SaeSweepError(
            f"matching: rows of {unit_a.shape[1]} and {unit_b.shape[1]} entries cannot be compared"
        )
    return unit_a.float(), unit_b.to(unit_a.device).float()


def mutual(found: Nearest) -> Mutual:
    """Pick the mutual nearest neighbours: at most one match per row, in both directions the same."""
    index_a, index_b = found.index_a[:, 0], found.index_b[:, 0]
    rows = torch.arange(len(index_a), device=index_a.device)
    chosen = (index_b[index_a] == rows).nonzero()[:, 0]
    return Mutual(chosen, index_a[chosen], found.cosines_a[chosen, 0])


def _block_rows(n_a: int, n_b: int) -> int:
    """Rows of a per block: whole tiles."""
    most = max(1, _BLOCK_ELEMENTS // n_b)
    return max(1, min(-(-n_a // _TILE), most // _TILE)) * _TILE


def _best_of_rows(block: Float[Tensor, "rows columns"], most: int) -> Int[Tensor, "rows most"]:
    """Keys of the best columns of each row.

    They lie in the tiles of the largest maxima: every other tile has `most` better entries before it.
    """
    tiles = block.view(len(block), -1, _TILE)
    best = _columns(_keys(tiles.amax(2), 0).topk(min(most, tiles.shape[1]), dim=1).values)
    columns = (best[:, :, None] * _TILE + torch.arange(_TILE, device=block.device)).flatten(1)
    return _pack(block.gather(1, columns), columns).topk(most, dim=1).values


def _best_of_columns(
    block: Float[Tensor, "rows columns"], most: int, start: int
) -> Int[Tensor, "columns most"]:
    """Keys of the best rows of each column, whose numbers begin at `start`."""
    tiles = block.view(-1, _TILE, block.shape[1])
    best = _columns(_keys(tiles.amax(1).T, 0).topk(min(most, len(tiles)), dim=1).values)
    rows = (best[:, :, None] * _TILE + torch.arange(_TILE, device=block.device)).flatten(1)
    values = block.gather(0, rows.T).T
    return _pack(values, rows + start).topk(most, dim=1).values


def _keys(values: Float[Tensor, "rows columns"], start: int) -> Int[Tensor, "rows columns"]:
    return _pack(values, torch.arange(start, start + values.shape[1], device=values.device))


def _pack(values: Float[Tensor, "*shape"], numbers: Int[Tensor, "..."]) -> Int[Tensor, "*shape"]:
    """Integers in the order of the values and, where those are equal, with the lower number above."""
    bits = (values.contiguous() + 0.0).view(torch.int32)  # + 0.0: there is one zero
    return _ordered(bits).long().bitwise_left_shift_(32).add_(_LAST).sub_(numbers)


def _ordered(bits: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Integers in the order of the floats with these bits, and back: negative ones have the others turned."""
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)


def _columns(keys: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    return _LAST - (keys & _LAST)


def _unpack(keys: Int[Tensor, "n most"]) -> tuple[Float[Tensor, "n most"], Int[Tensor, "n most"]]:
    """Cosines, within -1 and 1, and row numbers."""
    bits = _ordered((keys >> 32).int())
    return bits.view(torch.float32).clamp(-1, 1), _columns(keys)
