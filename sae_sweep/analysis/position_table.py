"""The table of the position hypothesis: position features by layer, and among what the next layer lacks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import bootstrap_means, percentile_interval
from sae_sweep.analysis.matching import match
from sae_sweep.analysis.positions import PositionTest
from sae_sweep.analysis.statistics import divide
from sae_sweep.config import MatchingConfig


@dataclass(frozen=True)
class AnalysedSAE:
    """An SAE and its position test under one change of the positional embeddings."""

    name: str
    layer: int
    """Layer whose residual stream it reads."""
    settings: str
    """All that tells it from other SAEs except its layer: only SAEs of equal settings are compared."""
    decoder: Float[Tensor, "d_sae d_in"]
    """W_dec."""
    test: PositionTest
    positions: str = "none"
    """What was done to the positional embeddings: none, zero or shuffle."""
    undertrained: bool | None = None
    """Whether too many of its features still match its initial dictionary; None if that is unknown."""


@dataclass(frozen=True)
class PositionRow:
    """Position features of an SAE; a row of the table of the position hypothesis."""

    sae: str
    layer: int
    positions: str
    """What was done to the positional embeddings: none, zero or shuffle."""
    live: int
    """Features that fire."""
    position_features: int
    remaining: int | None
    """Those of them that are position features with the embeddings as they are, too: the ones that the change
    leaves. None if the SAE was not tested with them."""
    share: float
    """Share of position features among the live ones."""
    low: float
    """Lower end of the 95 % interval of `share`, over sequences."""
    high: float
    tokens: int
    sequences: int
    undertrained: bool | None = None


@dataclass(frozen=True)
class UnsharedRow:
    """Position features among those that the next layer does not share, compared with all of the layer."""

    sae: str
    next_sae: str
    layer: int
    """Layer of `sae`; the next SAE reads the layer after it."""
    live: int
    """Live features of `sae`."""
    unmatched: int
    """Those whose best decoder cosine with a live feature of the next SAE is not above the threshold."""
    position_features: int
    unmatched_position_features: int
    share: float
    """Share of position features among the live ones."""
    unmatched_share: float
    """Share of position features among the unmatched ones; NaN if there are none."""
    difference: float
    """`unmatched_share` minus `share`: above 0 if the next layer lacks position features more than others."""
    low: float
    """Lower end of the 95 % interval of `difference`, over features."""
    high: float
    threshold: float
    undertrained: bool | None = None
    """Whether one of the two SAEs is."""


def position_rows(analysed: Sequence[AnalysedSAE]) -> list[PositionRow]:
    """The table of position features: a row per SAE and change of the positional embeddings, by layer."""
    unchanged = {one.name: one.test.passes for one in analysed if one.positions == "none"}
    return [
        PositionRow(
            sae=one.name,
            layer=one.layer,
            positions=one.positions,
            live=int(one.test.live.sum()),
            position_features=int(one.test.passes.sum()),
            remaining=int((one.test.passes & unchanged[one.name]).sum()) if one.name in unchanged else None,
            share=one.test.share,
            low=one.test.low,
            high=one.test.high,
            tokens=one.test.tokens,
            sequences=one.test.sequences,
            undertrained=one.undertrained,
        )
        for one in sorted(analysed, key=lambda one: (one.settings, one.layer))
    ]


def unshared_rows(
    analysed: Sequence[AnalysedSAE], threshold: float = MatchingConfig.threshold, *, seed: int = 0
) -> list[UnsharedRow]:
    """Compare SAEs of adjacent layers, equal in settings and size, with positional embeddings as they are."""
    found = sorted(
        (one for one in analysed if one.positions == "none"), key=lambda one: (one.settings, one.layer)
    )
    return [
        _unshared(early, late, threshold, seed)
        for early in found
        for late in found
        if (late.layer, late.settings) == (early.layer + 1, early.settings)
        and late.decoder.shape == early.decoder.shape
        and early.test.live.any()
        and late.test.live.any()
    ]


def _unshared(early: AnalysedSAE, late: AnalysedSAE, threshold: float, seed: int) -> UnsharedRow:
    live = early.test.live
    ours, theirs = (one.decoder[one.test.live.to(one.decoder.device)] for one in (early, late))
    cosines = match(ours, theirs, threshold).top1_a
    unmatched, passes = cosines <= threshold, early.test.passes[live]
    values = torch.stack([unmatched, passes, unmatched & passes], 1)
    n_unmatched, n_passes, n_both = values.sum(0).tolist()
    share, unmatched_share = divide(n_passes, len(passes)), divide(n_both, n_unmatched)
    low, high = _interval(values, seed)
    return UnsharedRow(
        sae=early.name,
        next_sae=late.name,
        layer=early.layer,
        live=len(passes),
        unmatched=n_unmatched,
        position_features=n_passes,
        unmatched_position_features=n_both,
        share=share,
        unmatched_share=unmatched_share,
        difference=unmatched_share - share,
        low=low,
        high=high,
        threshold=threshold,
        undertrained=_either(early.undertrained, late.undertrained),
    )


def _either(one: bool | None, other: bool | None) -> bool | None:
    """Whether one of two is; None if neither is known to be and one is unknown."""
    return True if one or other else None if None in (one, other) else False


def _interval(values: Bool[Tensor, "live 3"], seed: int) -> tuple[float, float]:
    """Interval of the difference, from which live features are unmatched, pass, and are both."""
    unmatched, passes, both = bootstrap_means(values.float(), seed=seed).double().unbind(1)
    differences = both / unmatched - passes
    defined = differences[~differences.isnan()]  # a resample may hold no unmatched feature
    return percentile_interval(defined) if len(defined) else (math.nan, math.nan)
