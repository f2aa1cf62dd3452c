"""How the features of an SAE fire: sums by feature and by position, from sparse activations, in float64."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.statistics import _widest

_ROUNDING = 1e-12
"""Relative size of rounding errors of sums in float64."""


class Activations(NamedTuple):
    """The non-zero activations of a batch of tokens."""

    rows: Int[Tensor, " nnz"]
    """Token of each, within the batch, ascending."""
    features: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    """Sizes, above 0."""

    @classmethod
    def of(cls, f: Float[Tensor, "tokens d_sae"]) -> "Activations":
        """The sizes of dense latents that are not 0; a JumpReLU threshold below 0 gives negative ones."""
        rows, features = f.nonzero(as_tuple=True)
        return cls(rows, features, f[rows, features].abs())


@dataclass(frozen=True)
class ByPosition:
    """Statistics of every position of a sequence; one entry per position, NaN where nothing is counted."""

    tokens: Int[Tensor, " positions"]
    """Tokens that count: special ones do not."""
    active: Int[Tensor, " positions"]
    """Non-zero activations, over tokens and features."""
    mean: Float[Tensor, " positions"]
    """Mean of the non-zero activations, over tokens and features."""
    std: Float[Tensor, " positions"]
    """Their standard deviation (of the population)."""
    l0: Float[Tensor, " positions"]
    """Features that fire per token."""
    density: Float[Tensor, " positions"]
    """Share of the dictionary that fires on a token: L0 / d_sae."""


@dataclass(frozen=True)
class ByFeature:
    """Statistics of every feature; one entry per feature, NaN where it is undefined, as for dead features."""

    active: Int[Tensor, " d_sae"]
    """Tokens on which it fires."""
    density: Float[Tensor, " d_sae"]
    """Share of tokens on which it fires."""
    mean: Float[Tensor, " d_sae"]
    """Mean activation over the tokens on which it fires."""
    std: Float[Tensor, " d_sae"]
    """Standard deviation over those tokens (of the population)."""
    max: Float[Tensor, " d_sae"]
    position_entropy: Float[Tensor, " d_sae"]
    """Entropy in nats of its mean activation by position, as shares of their sum; ln(positions) if even."""
    position_share: Float[Tensor, " d_sae"]
    """Share of its variance that position explains, zeros included, without the first position: omega²
    (definitions.md 4.8), which is 0 on average for a feature that ignores position, and may be below."""


class ActiveByPosition:
    """Sums of the non-zero activations by position, over batches."""

    def __init__(self, d_sae: int, positions: int, device: torch.device) -> None:
        self._d_sae = d_sae
        self.tokens = torch.zeros(positions, dtype=torch.int64, device=device)
        self.active = torch.zeros(positions, dtype=torch.int64, device=device)
        self.sums = torch.zeros(positions, dtype=_widest(device), device=device)
        self.squares = torch.zeros(positions, dtype=_widest(device), device=device)

    def update(self, activations: Activations, positions: Int[Tensor, " tokens"]) -> None:
        """Add a batch of tokens, each with its position in its sequence."""
        at, wide = positions[activations.rows], activations.values.to(self.sums.dtype)
        self.tokens += torch.bincount(positions, minlength=len(self.tokens))
        self.active += torch.bincount(at, minlength=len(self.active))
        self.sums.index_add_(0, at, wide)
        self.squares.index_add_(0, at, wide.square())

    def merge(self, other: "ActiveByPosition") -> None:
        """Add another part of the text."""
        for name in ("tokens", "active", "sums", "squares"):
            getattr(self, name).add_(getattr(other, name).to(self.tokens.device))

    def statistics(self) -> ByPosition:
        """Statistics of every position."""
        tokens, active = self.tokens.cpu(), self.active.cpu()
        mean = self.sums.cpu().double() / active
        l0 = active.double() / tokens
        return ByPosition(
            tokens=tokens,
            active=active,
            mean=mean,
            std=_std(self.squares.cpu().double() / active, mean),
            l0=l0,
            density=l0 / self._d_sae,
        )


class Firing:
    """Sums over batches; two of them over parts of the text, merged, equal one over all of it.

    It holds one sum per position and feature: 13 MB for 128 positions and 12,288 features.
    """

    def __init__(self, d_sae: int, positions: int, device: torch.device) -> None:
        wide = _widest(device)
        self._positions = ActiveByPosition(d_sae, positions, device)
        self.sums = torch.zeros(positions, d_sae, dtype=wide, device=device)
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.squares = torch.zeros(d_sae, dtype=wide, device=device)
        self.first_squares = torch.zeros(d_sae, dtype=wide, device=device)
        """Sum of squares by feature at the first position alone."""
        self.largest = torch.zeros(d_sae, device=device)

    @property
    def tokens(self) -> Int[Tensor, " positions"]:
        """Tokens at every position."""
        return self._positions.tokens

    def update(self, activations: Activations, positions: Int[Tensor, " tokens"]) -> None:
        """Add a batch.

        Args:
            activations: non-zeros of the tokens that count.
            positions: each token's position in its sequence.
        """
        rows, features, values = activations
        d_sae, at = len(self.fired), positions[rows]
        wide = values.to(self.sums.dtype)
        squares = wide.square()
        self._positions.update(activations, positions)
        self.sums.view(-1).index_add_(0, at * d_sae + features, wide)
        self.fired += torch.bincount(features, minlength=d_sae)
        self.squares.index_add_(0, features, squares)
        first = at == 0
        self.first_squares.index_add_(0, features[first], squares[first])
        self.largest.scatter_reduce_(0, features, values.float(), "amax")

    def merge(self, other: "Firing") -> None:
        """Add another part of the text."""
        self._positions.merge(other._positions)
        for name in ("sums", "fired", "squares", "first_squares"):
            getattr(self, name).add_(getattr(other, name).to(self.sums.device))
        self.largest = torch.maximum(self.largest, other.largest.to(self.largest.device))

    def by_position(self) -> ByPosition:
        return self._positions.statistics()

    def by_feature(self) -> ByFeature:
        fired, sums = self.fired.cpu(), self.sums.cpu().double()
        mean = sums.sum(0) / fired
        return ByFeature(
            active=fired,
            density=fired.double() / self.tokens.sum().cpu(),
            mean=mean,
            std=_std(self.squares.cpu().double() / fired, mean),
            max=self.largest.cpu().double().masked_fill(fired == 0, torch.nan),
            position_entropy=self._position_entropy(sums),
            position_share=self._position_share(sums),
        )

    def _position_entropy(self, sums: Tensor) -> Tensor:
        counted = self.tokens.cpu() > 0
        means = sums[counted] / self.tokens.cpu()[counted, None]
        return torch.special.entr(means / means.sum(0)).sum(0)

    def _position_share(self, sums: Tensor) -> Tensor:
        squares = (self.squares - self.first_squares).cpu().double()
        return omega_squared(self.tokens.cpu()[1:, None].double(), sums[1:], squares)


def omega_squared(
    counts: Float[Tensor, "positions ..."],
    sums: Float[Tensor, "positions ..."],
    squares: Float[Tensor, "..."],
    *,
    draws: int = 1,
) -> Float[Tensor, "..."]:
    """Share of the variance of activations that position explains, zeros included: omega² of a one-way
    analysis of variance with positions as groups, (SS_between - (P-1) MS_within) / (SS_total + MS_within).

    Args:
        counts: tokens at every position; a position without any is no group.
        sums: sum of the activations, which are not negative, at every position.
        squares: sum of the squared activations.
        draws: how often the tokens were drawn at random: 1 for a sample of text, 2 for a bootstrap resample
            of it, whose means by position have the noise (P-1) MS_within twice.

    Returns NaN where the activations do not vary, as for a dead feature.
    """
    groups, tokens = (counts > 0).sum(0), counts.sum(0)
    fires = sums.sum(0) > 0
    correction = sums.sum(0).square() / tokens
    between = (sums.square() / counts.clamp(min=1)).sum(0) - correction
    total = squares - correction
    within = (total - between) / (tokens - groups)
    share = (between - draws * (groups - 1) * within) / (total + within)
    return share.where(fires & (total > _ROUNDING * squares), torch.nan)


def _std(mean_square: Tensor, mean: Tensor) -> Tensor:
    return (mean_square - mean.square()).clamp(min=0).sqrt()


def columns(statistics: ByPosition | ByFeature) -> dict[str, Tensor]:
    """The statistics as columns of a table, by name."""
    return {field.name: getattr(statistics, field.name) for field in fields(statistics)}
