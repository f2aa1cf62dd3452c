"""Matching of two dictionaries by the top-1 cosine of their decoder rows.

The ratio is the study's: r(B -> A), or "B in A", is the mean over features j of B of
1(max_i cos(a_i, b_j) > threshold), strictly above. It is not symmetric. MMCS is the mean of the same
maxima (Sharkey et al. 2022), with the signed cosine.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.config import MatchingConfig, RunConfig, SaeSweepError
from sae_sweep.saes import starting_decoder

CHUNK_ELEMENTS = 1 << 24
"""Cosines in memory at once: 64 MiB of float32."""


class HasDecoder(Protocol):
    """Anything with a decoder: every SAE of this project."""

    @property
    def W_dec(self) -> Tensor: ...  # noqa: N802  (the field's own name)


class MatchResult(NamedTuple):
    """Result of `match`; `b_in_a` counts features of b, `a_in_b` those of a."""

    ratio_b_in_a: float
    """Share of b's features whose best cosine among a's rows is above the threshold: r(b -> a)."""
    ratio_a_in_b: float
    """Share of a's features whose best cosine among b's rows is above the threshold: r(a -> b)."""
    mmcs_a_to_b: float
    """Mean over a's features of the best cosine among b's rows."""
    mmcs_b_to_a: float
    """Mean over b's features of the best cosine among a's rows."""
    top1_a: Float[Tensor, " n_a"]
    """Best cosine of each of a's features among b's rows, on the CPU."""
    top1_b: Float[Tensor, " n_b"]
    """Best cosine of each of b's features among a's rows, on the CPU."""
    index_a: Int[Tensor, " n_a"]
    """Row of b that each of a's features is nearest to, on the CPU, whether or not it is a match."""
    index_b: Int[Tensor, " n_b"]
    """Row of a that each of b's features is nearest to."""
    n_a: int
    n_b: int
    threshold: float
    live_ratio_b_in_a: float | None = None
    """`ratio_b_in_a` without the dead features of both; None without densities, NaN if all of b are dead."""
    live_ratio_a_in_b: float | None = None
    n_live_a: int | None = None
    n_live_b: int | None = None
    live_top1_a: Float[Tensor, " n_live_a"] | None = None
    """Best cosine of each of a's live features among b's live ones, on the CPU; None without densities."""
    live_top1_b: Float[Tensor, " n_live_b"] | None = None


def match(
    a: HasDecoder | Tensor,
    b: HasDecoder | Tensor,
    threshold: float = MatchingConfig.threshold,
    *,
    densities_a: Float[Tensor, " n_a"] | None = None,
    densities_b: Float[Tensor, " n_b"] | None = None,
) -> MatchResult:
    """Compare two dictionaries by the cosine of their decoder rows, in both directions.

    Args:
        a: an SAE, or its `W_dec` [n_a, d_in]; everything is computed on its device.
        b: likewise, [n_b, d_in].
        threshold: a feature is matched when its best cosine is strictly above this; between 0 and 1.
        densities_a: share of tokens on which each of a's features fires; one of 0 is dead.
            The live ratios need the densities of both.
        densities_b: likewise.

    The cosine with an all-zero row counts as 0, so that such a row never matches and never gives NaN.

    Raises:
        SaeSweepError: for shapes that do not fit, an empty or non-finite decoder, a threshold out of range.
    """
    rows_a = _decoder(a, "a")
    rows_b = _decoder(b, "b").to(rows_a.device)
    _check_comparable(rows_a, rows_b, threshold)
    unit_a, unit_b = unit_rows(rows_a), unit_rows(rows_b)
    if densities_a is None or densities_b is None:
        return _result(_nearest(unit_a, unit_b), threshold)
    return _result_with_live(
        *(unit_a, unit_b, threshold), _live(densities_a, unit_a, "a"), _live(densities_b, unit_b, "b")
    )


def match_to_init(
    decoder: Float[Tensor, "d_sae d_in"],
    initial: Float[Tensor, "n_init d_in"],
    threshold: float = MatchingConfig.threshold,
) -> float:
    """Share of features whose cosine with some row of the SAE's own initial dictionary is above `threshold`.

    SAEs that start from the same dictionary match for that reason alone until training has moved them away
    from it, so this number stands beside every comparison.
    """
    return match(initial, decoder, threshold).ratio_b_in_a


def match_to_own_start(
    decoder: Float[Tensor, "d_sae d_in"], config: RunConfig, run_id: str, threshold: float
) -> float:
    """`match_to_init` for the dictionary that a run drew from its seed, or took from `init.sae`."""
    d_sae, d_in = decoder.shape
    start = starting_decoder(config, d_in, d_sae, run_id)
    return match_to_init(decoder.detach().cpu(), start, threshold)


def unit_rows(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """Rows scaled to length 1; all-zero rows stay 0.

    They are divided by their largest entry first, so that no square over- or underflows.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1)
    norm = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


class _Nearest(NamedTuple):
    """The best cosine of every row in the other matrix, and the index of the row that has it."""

    top1_a: Float[Tensor, " n_a"]
    top1_b: Float[Tensor, " n_b"]
    index_a: Int[Tensor, " n_a"]
    index_b: Int[Tensor, " n_b"]


def _nearest(unit_a: Float[Tensor, "n_a d_in"], unit_b: Float[Tensor, "n_b d_in"]) -> _Nearest:
    """Find the nearest row of the other matrix for every row, both directions from one pass over row chunks.

    If the other matrix has no rows, the best cosine is -1 and the index 0.
    """
    top_a, index_a = unit_a.new_full((len(unit_a),), -1.0), unit_a.new_zeros(len(unit_a), dtype=torch.long)
    top_b, index_b = unit_b.new_full((len(unit_b),), -1.0), unit_b.new_zeros(len(unit_b), dtype=torch.long)
    if len(unit_a) == 0 or len(unit_b) == 0:
        return _Nearest(top_a, top_b, index_a, index_b)
    size = max(1, CHUNK_ELEMENTS // len(unit_b))
    for start in range(0, len(unit_a), size):
        cosines = unit_a[start : start + size] @ unit_b.T
        top_a[start : start + size], index_a[start : start + size] = cosines.max(dim=1)
        highest, rows = cosines.T.contiguous().max(dim=1)  # faster than along the columns
        index_b = torch.where(highest > top_b, rows + start, index_b)
        top_b = torch.maximum(top_b, highest)
    return _Nearest(top_a.clamp(-1, 1), top_b.clamp(-1, 1), index_a, index_b)


def share_above(top1: Float[Tensor, " n"], threshold: float) -> float:
    """Share of features strictly above the threshold; NaN if there are none."""
    return (top1 > threshold).sum().item() / len(top1) if len(top1) else float("nan")


def _result_with_live(
    unit_a: Tensor,
    unit_b: Tensor,
    threshold: float,
    live_a: Bool[Tensor, " n_a"],
    live_b: Bool[Tensor, " n_b"],
) -> MatchResult:
    found, live_top_a, live_top_b = _nearest_with_live(unit_a, unit_b, live_a, live_b)
    return _result(found, threshold)._replace(
        live_ratio_b_in_a=share_above(live_top_b, threshold),
        live_ratio_a_in_b=share_above(live_top_a, threshold),
        n_live_a=len(live_top_a),
        n_live_b=len(live_top_b),
        live_top1_a=live_top_a.cpu(),
        live_top1_b=live_top_b.cpu(),
    )


def _nearest_with_live(
    unit_a: Tensor, unit_b: Tensor, live_a: Bool[Tensor, " n_a"], live_b: Bool[Tensor, " n_b"]
) -> tuple[_Nearest, Tensor, Tensor]:
    """The nearest among all rows, and the best cosines among live ones; every cosine is computed once."""
    rows_a, rows_b = _live_first(live_a), _live_first(live_b)
    count_a, count_b = int(live_a.sum()), int(live_b.sum())
    sorted_a, sorted_b = unit_a[rows_a], unit_b[rows_b]
    live = _nearest(sorted_a[:count_a], sorted_b[:count_b])
    dead_b = _nearest(sorted_a[:count_a], sorted_b[count_b:])
    dead_a = _nearest(sorted_a[count_a:], sorted_b)
    closer_a = dead_b.top1_a > live.top1_a
    top_a = torch.cat([torch.maximum(live.top1_a, dead_b.top1_a), dead_a.top1_a])
    index_a = torch.cat([torch.where(closer_a, dead_b.index_a + count_b, live.index_a), dead_a.index_a])
    of_live_b = torch.cat([live.top1_b, dead_b.top1_b])
    top_b = torch.maximum(of_live_b, dead_a.top1_b)
    index_b = torch.where(
        dead_a.top1_b > of_live_b, dead_a.index_b + count_a, torch.cat([live.index_b, dead_b.index_b])
    )
    back_a, back_b = rows_a.argsort(), rows_b.argsort()
    found = _Nearest(top_a[back_a], top_b[back_b], rows_b[index_a][back_a], rows_a[index_b][back_b])
    return found, live.top1_a, live.top1_b


def _live_first(live: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Row numbers, those of live features before those of dead ones."""
    return torch.cat([live.nonzero()[:, 0], (~live).nonzero()[:, 0]])


def _result(found: _Nearest, threshold: float) -> MatchResult:
    return MatchResult(
        ratio_b_in_a=share_above(found.top1_b, threshold),
        ratio_a_in_b=share_above(found.top1_a, threshold),
        mmcs_a_to_b=found.top1_a.mean().item(),
        mmcs_b_to_a=found.top1_b.mean().item(),
        top1_a=found.top1_a.cpu(),
        top1_b=found.top1_b.cpu(),
        index_a=found.index_a.cpu(),
        index_b=found.index_b.cpu(),
        n_a=len(found.top1_a),
        n_b=len(found.top1_b),
        threshold=threshold,
    )


def _decoder(source: HasDecoder | Tensor, name: str) -> Tensor:
    rows = (source if isinstance(source, Tensor) else source.W_dec).detach().float()
    if rows.ndim != 2 or 0 in rows.shape:
        raise SaeSweepError(f"matching: decoder {name} has shape {tuple(rows.shape)}, not [features, d_in]")
    if not rows.isfinite().all():
        raise SaeSweepError(f"matching: decoder {name} holds NaN or inf; its run diverged, train it again")
    return rows


def _check_comparable(rows_a: Tensor, rows_b: Tensor, threshold: float) -> None:
    if rows_a.shape[1] != rows_b.shape[1]:
        raise SaeSweepError(
            f"matching: d_in differs ({rows_a.shape[1]} and {rows_b.shape[1]}); "
            "only SAEs of one residual width can be compared"
        )
    if not 0 <= threshold <= 1:
        raise SaeSweepError(f"matching: threshold={threshold} must lie between 0 and 1")


def _live(densities: Tensor, rows: Tensor, name: str) -> Tensor:
    if densities.shape != rows.shape[:1]:
        raise SaeSweepError(
            f"matching: densities of {name} have shape {tuple(densities.shape)}, not ({len(rows)},)"
        )
    return (densities > 0).to(rows.device)
