"""Which features come back with every seed, and what the others span."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.analysis.dictionaries import random_rows, token_rows, usable_rows
from sae_sweep.analysis.neighbours import mutual, nearest
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.analysis.statistics import divide
from sae_sweep.config import MatchingConfig, SaeSweepError

ENERGY = 0.9
"""Share of the energy of its rows that a truncated span holds."""
DRAWS = 20
"""Pairs of random subspaces from which the range of their overlap is taken."""


@dataclass(frozen=True)
class Stability:
    """How often each feature of an SAE comes back in SAEs that differ from it in the seed only."""

    name: str
    others: tuple[str, ...]
    """Those SAEs."""
    share: Float[Tensor, " d_sae"]
    """Share of them that hold a mutual nearest neighbour above the threshold; NaN for features that cannot be
    matched: dead, zero or not finite."""

    @property
    def stable(self) -> Bool[Tensor, " d_sae"]:
        """Features that all others hold."""
        return self.share == 1

    @property
    def unstable(self) -> Bool[Tensor, " d_sae"]:
        """Features that no other holds."""
        return self.share == 0


@dataclass(frozen=True)
class Overlap:
    """How far the spans of two sets of directions coincide, beside random subspaces of the same ranks."""

    rank_a: int
    rank_b: int
    overlap: float
    """Mean squared cosine of the principal angles, 0 to 1; NaN if either span is empty."""
    random: float
    """Its expectation for random subspaces of these ranks."""
    random_low: float
    """2.5th percentile of it among random subspaces."""
    random_high: float
    tokens: float
    """Its value for spans of as many residuals of random tokens; NaN without so many."""
    a_in_b: float
    """Share of the energy of a's rows that lies in b's span: what b's span explains of a."""
    b_in_a: float
    random_a_in_b: float
    """Expectation of `a_in_b` for a random span of b's rank."""
    random_b_in_a: float
    angles: Float[Tensor, " smaller_rank"]
    """Principal angles, ascending, in degrees."""


def seed_groups(entries: Sequence[ComparisonEntry], key: str = "seed") -> list[list[ComparisonEntry]]:
    """SAEs that differ in `key` alone, in groups of two or more."""
    groups: dict[str, list[ComparisonEntry]] = {}
    for entry in entries:
        if key in entry.keys:
            others = sorted((name, repr(value)) for name, value in entry.keys.items() if name != key)
            groups.setdefault(repr((others, tuple(entry.decoder.shape))), []).append(entry)
    return [group for group in groups.values() if len({repr(entry.keys[key]) for entry in group}) > 1]


def seed_stability(
    entries: Sequence[ComparisonEntry],
    threshold: float = MatchingConfig.threshold,
    *,
    device: torch.device | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[Stability]:
    """Count for each feature the SAEs that hold it, among SAEs of other seeds (`seed_groups`).

    Args:
        entries: SAEs that differ in their seeds only; where densities are known, dead features are left
            out.
        threshold: cosine of decoder rows, strictly above.
        device: where products are computed.
        between: called between pairs, to obey a stop.

    Raises:
        SaeSweepError: for fewer than two SAEs, or SAEs of different widths.
    """
    if len(entries) < 2:
        raise SaeSweepError(f"stability: {len(entries)} SAE to compare; at least 2 seeds are needed")
    rows = [usable_rows([entry.decoder.to(device)], entry.densities) for entry in entries]
    counts = [torch.full((one.kept.n,), math.nan).index_fill(0, one.kept.ids, 0.0) for one in rows]
    for i, j in itertools.combinations(range(len(entries)), 2):
        between()
        if len(rows[i].unit) and len(rows[j].unit):
            found = mutual(nearest(rows[i].unit, rows[j].unit))
            above = found.cosines > threshold
            counts[i][rows[i].kept.ids[found.a[above].cpu()]] += 1
            counts[j][rows[j].kept.ids[found.b[above].cpu()]] += 1
    names = [entry.name for entry in entries]
    return [
        Stability(name, tuple(other for other in names if other != name), count / (len(entries) - 1))
        for name, count in zip(names, counts, strict=True)
    ]


def span(rows: Float[Tensor, "n d_in"], energy: float = ENERGY) -> Float[Tensor, "d_in rank"]:
    """Orthonormal basis of the fewest directions that hold `energy` of the rows' squared norm."""
    values, vectors = torch.linalg.eigh(rows.cpu().double().T @ rows.cpu().double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not values.sum() > 0:
        return vectors[:, :0]
    held = values.cumsum(0) / values.sum()
    return vectors[:, : int((held < energy * (1 - 1e-12)).sum()) + 1]


def overlap(
    unit_a: Float[Tensor, "n_a d_in"],
    unit_b: Float[Tensor, "n_b _"],
    energy: float = ENERGY,
    *,
    residuals: Float[Tensor, "tokens d_in"] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Overlap:
    """Compare the spans of two sets of rows of length 1, such as the unstable features of two seeds.

    Args:
        unit_a: rows of length 1; there may be none.
        unit_b: likewise.
        energy: share of the rows' squared norm that their spans are truncated to.
        residuals: SAE inputs at some tokens, for the overlap of spans of the data's own directions.
        draws: pairs of random subspaces for the range of their overlap.
        seed: of random subspaces and tokens.
    """
    a, b = span(unit_a, energy), span(unit_b, energy)
    (width, rank_a), rank_b = a.shape, b.shape[1]
    cosines = torch.linalg.svdvals(a.T @ b).clamp(0, 1)
    random_low, random_high = _random_range(width, rank_a, rank_b, draws, seed)
    return Overlap(
        rank_a=rank_a,
        rank_b=rank_b,
        overlap=_overlap(a, b),
        random=divide(rank_a * rank_b, width * min(rank_a, rank_b)),
        random_low=random_low,
        random_high=random_high,
        tokens=_token_overlap(residuals, len(unit_a), len(unit_b), energy, seed),
        a_in_b=_explained(unit_a, b),
        b_in_a=_explained(unit_b, a),
        random_a_in_b=rank_b / width,
        random_b_in_a=rank_a / width,
        angles=cosines.acos().rad2deg().float(),
    )


def _overlap(a: Float[Tensor, "d_in rank_a"], b: Float[Tensor, "d_in rank_b"]) -> float:
    return divide((a.T @ b).square().sum().item(), min(a.shape[1], b.shape[1]))


def _explained(rows: Float[Tensor, "n d_in"], basis: Float[Tensor, "d_in rank"]) -> float:
    known = rows.cpu().double()
    return divide((known @ basis).square().sum().item(), known.square().sum().item())


def _random_range(width: int, rank_a: int, rank_b: int, draws: int, seed: int) -> tuple[float, float]:
    """95 % range of the overlap of random subspaces; one of the two may be any fixed one."""
    fixed = torch.eye(width, dtype=torch.float64)[:, :rank_a]
    found = [
        _overlap(fixed, torch.linalg.qr(random_rows(rank_b, width, seed + i).double().T)[0])
        for i in range(draws)
    ]
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(found, dtype=torch.float64), levels).tolist()
    return low, high


def _token_overlap(residuals: Tensor | None, n_a: int, n_b: int, energy: float, seed: int) -> float:
    if residuals is None or len(residuals) < n_a + n_b:
        return math.nan
    rows = token_rows(residuals, n_a + n_b, seed)
    return _overlap(span(rows[:n_a], energy), span(rows[n_a:], energy))
