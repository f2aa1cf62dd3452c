"""One-to-one matching of two dictionaries: the assignment of the highest mean cosine, exact or softened."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.neighbours import comparable
from sae_sweep.analysis.statistics import divide
from sae_sweep.config import MatchingConfig, SaeSweepError

MOST_BYTES = 4 * 2**30
"""Memory that all cosines may take while two dictionaries are assigned, in float64."""
COLDEST = 0.01
"""Lowest temperature of a soft match: exp(-0.87 / 0.01) is about the smallest float32."""
_BLOCK_ELEMENTS = 1 << 24


class Assignment(NamedTuple):
    """Every feature of the smaller dictionary with one of the other, none of which is taken twice."""

    index_a: Int[Tensor, " n_a"]
    """Row of b of each of a's features; -1 without one, where b is smaller."""
    index_b: Int[Tensor, " n_b"]
    """Row of a of each of b's features; -1 without one."""
    cosines_a: Float[Tensor, " n_a"]
    """Cosine of each of a's features and its partner; NaN without one."""
    cosines_b: Float[Tensor, " n_b"]

    @property
    def mean(self) -> float:
        """Mean cosine of the pairs: the MCC of two SAEs (Song et al. 2025)."""
        return self.cosines_a.double().nanmean().item()

    def share(self, threshold: float = MatchingConfig.threshold) -> float:
        """Share of the pairs whose cosine is above the threshold: SFR (FaithfulSAE, 2025)."""
        pairs = self.cosines_a[self.index_a >= 0]
        return divide((pairs > threshold).sum().item(), len(pairs))


class Shared(NamedTuple):
    """Features that two SAEs share by encoder and decoder (Paulo and Belrose 2025)."""

    decoder: Assignment
    encoder: Assignment
    shared_a: Bool[Tensor, " n_a"]
    """Whether the decoder assignment's partner has a cosine above the threshold in both matrices."""
    shared_b: Bool[Tensor, " n_b"]
    agree_a: Bool[Tensor, " n_a"]
    """Whether both assignments give it the same partner."""
    share: float
    """Shared pairs, as a share of all pairs of the decoder assignment."""
    index_agreement: float
    """Pairs of the decoder assignment that the encoder assignment has too, as a share."""
    cosine_agree: float
    """Mean decoder cosine of the pairs that both assignments have; NaN if there are none."""
    cosine_differ: float
    """Mean decoder cosine of the other pairs."""


class SoftMatches(NamedTuple):
    """A transport plan between two dictionaries that spreads every feature's mass (Cuturi 2013)."""

    index_a: Int[Tensor, " n_a"]
    """Row of b that gets the most of each of a's features."""
    index_b: Int[Tensor, " n_b"]
    weight_a: Float[Tensor, " n_a"]
    """Share of the feature's mass that its `index_a` gets: 1 if the match is certain."""
    weight_b: Float[Tensor, " n_b"]
    cosines_a: Float[Tensor, " n_a"]
    """Mean cosine of each of a's features with all of b, weighted by the plan."""
    cosines_b: Float[Tensor, " n_b"]
    mean: float
    """Mean cosine under the plan. At most that of the best assignment for dictionaries of equal size, and it
    goes there with the temperature to 0."""
    error: float
    """Mass that is not where it should be after the last iteration, as a share of all mass."""
    iterations: int


def assign(
    unit_a: Float[Tensor, "n_a width"],
    unit_b: Float[Tensor, "n_b _"],
    *,
    absolute: bool = False,
    most_bytes: int = MOST_BYTES,
) -> Assignment:
    """Find the one-to-one assignment of the highest sum of cosines, exactly (Hungarian method).

    Args:
        unit_a: rows of length 1, as of `rows_of`.
        unit_b: likewise; the dictionaries may differ in size.
        absolute: whether the size of a cosine counts, and not its sign.
        most_bytes: bound on the memory of all cosines.

    It needs all cosines at once, and the time of the solver (scipy, Crouse 2016, on one core) grows with up
    to the third power of the number of features.

    Raises:
        SaeSweepError: for dictionaries that cannot be compared, or more cosines than `most_bytes` hold.
    """
    from scipy.optimize import linear_sum_assignment

    unit_a, unit_b = comparable(unit_a, unit_b)
    if len(unit_a) > len(unit_b):  # the solver would copy the transposed matrix
        return _swapped(assign(unit_b, unit_a, absolute=absolute, most_bytes=most_bytes))
    costs = _all_cosines(unit_a, unit_b, most_bytes, torch.float64)
    if absolute:
        costs.abs_()
    rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(costs.neg_().numpy()))
    return _assignment(rows, columns, -costs[rows, columns].float(), *costs.shape)


def _assignment(rows: Tensor, columns: Tensor, cosines: Tensor, n_a: int, n_b: int) -> Assignment:
    index_a, index_b = torch.full((n_a,), -1), torch.full((n_b,), -1)
    cosines_a, cosines_b = torch.full((n_a,), torch.nan), torch.full((n_b,), torch.nan)
    index_a[rows], index_b[columns] = columns, rows
    cosines_a[rows], cosines_b[columns] = cosines, cosines
    return Assignment(index_a, index_b, cosines_a, cosines_b)


def _swapped(found: Assignment) -> Assignment:
    return Assignment(found.index_b, found.index_a, found.cosines_b, found.cosines_a)


def _all_cosines(unit_a: Tensor, unit_b: Tensor, most_bytes: int, dtype: torch.dtype) -> Tensor:
    """All cosines, on the CPU."""
    shape = len(unit_a), len(unit_b)
    needed = math.prod(shape) * dtype.itemsize
    if needed > most_bytes:
        raise SaeSweepError(
            f"matching: an assignment of {shape[0]:,} to {shape[1]:,} features needs {needed / 2**30:.1f} "
            f"GiB for their cosines; {most_bytes / 2**30:.1f} are allowed. Match nearest neighbours instead"
        )
    cosines = torch.empty(shape, dtype=dtype)
    size = max(1, _BLOCK_ELEMENTS // shape[1])
    for start in range(0, shape[0], size):
        cosines[start : start + size] = (unit_a[start : start + size] @ unit_b.T).clamp(-1, 1)
    return cosines


def shared(
    a: tuple[Float[Tensor, "n_a d_in"], Float[Tensor, "n_a d_in"]],
    b: tuple[Float[Tensor, "n_b d_in"], Float[Tensor, "n_b d_in"]],
    threshold: float = MatchingConfig.threshold,
    *,
    most_bytes: int = MOST_BYTES,
) -> Shared:
    """Find the features that two SAEs share by the rule of Paulo and Belrose (2025).

    A feature is shared if its partner in the best assignment of decoders has a cosine above `threshold` in
    the decoder and in the encoder. The encoders are assigned as well, to see how often both agree.

    Args:
        a: decoder and encoder rows of length 1 of the same features (`halves`).
        b: likewise.
        threshold: cosine, strictly above.
        most_bytes: bound on the memory of all cosines.
    """
    decoder, encoder = (assign(x, y, most_bytes=most_bytes) for x, y in zip(a, b, strict=True))
    rows = (decoder.index_a >= 0).nonzero()[:, 0]
    columns = decoder.index_a[rows]
    in_encoder = (a[1][rows.to(a[1].device)].cpu() * b[1][columns.to(b[1].device)].cpu()).sum(1)
    passes = (decoder.cosines_a[rows] > threshold) & (in_encoder > threshold)
    agrees = encoder.index_a[rows] == columns
    shared_a, shared_b, agree_a = (
        torch.zeros(n, dtype=torch.bool) for n in (len(a[0]), len(b[0]), len(a[0]))
    )
    shared_a[rows], shared_b[columns], agree_a[rows] = passes, passes, agrees
    cosines = decoder.cosines_a[rows]
    return Shared(
        *(decoder, encoder, shared_a, shared_b, agree_a),
        share=passes.double().mean().item(),
        index_agreement=agrees.double().mean().item(),
        cosine_agree=cosines[agrees].mean().item(),
        cosine_differ=cosines[~agrees].mean().item(),
    )


def soft_match(
    unit_a: Float[Tensor, "n_a width"],
    unit_b: Float[Tensor, "n_b _"],
    temperature: float = 0.05,
    *,
    iterations: int = 200,
    tolerance: float = 1e-3,
    most_bytes: int = MOST_BYTES,
    between: Callable[[], None] = lambda: None,
) -> SoftMatches:
    """Match softly by entropic optimal transport (Sinkhorn's iterations; Cuturi 2013).

    Args:
        unit_a: rows of length 1; each has the mass 1 / n_a.
        unit_b: likewise.
        temperature: weight of the entropy, in units of the cosine; at a low one the plan is an assignment.
        iterations: at most so many; each reads all cosines twice.
        tolerance: misplaced share of mass at which they end.
        most_bytes: bound on the memory of all cosines.
        between: called between iterations, to obey a stop.

    Raises:
        SaeSweepError: for dictionaries that cannot be compared, more cosines than `most_bytes` hold, or a
            temperature below 0.01, at which float32 underflows.
    """
    if not temperature >= COLDEST:
        raise SaeSweepError(f"matching: temperature={temperature} must be at least {COLDEST}")
    kernel = _all_cosines(*comparable(unit_a, unit_b), most_bytes, torch.float32)
    best = kernel.amax(1)
    kernel.sub_(best[:, None]).div_(temperature).exp_()
    n_a, n_b = kernel.shape
    tiny = torch.finfo(kernel.dtype).tiny  # of a row that is far from all others
    v, error, done = torch.ones(n_b), math.inf, 0
    while error > tolerance and done < iterations:
        between()
        u = 1 / (n_a * (kernel @ v).clamp(min=tiny))
        sums = u @ kernel
        error = (sums * v - 1 / n_b).abs().sum().item() / 2
        v, done = 1 / (n_b * sums.clamp(min=tiny)), done + 1
    to_b = _sides(kernel, v, best[:, None], temperature)
    to_a = _sides(kernel.T, u, best, temperature)
    return SoftMatches(
        *(to_b[0], to_a[0], to_b[1], to_a[1], to_b[2], to_a[2]),
        mean=to_a[2].double().mean().item(),  # the masses of b are exact after the last iteration
        error=error,
        iterations=done,
    )


def _sides(
    kernel: Float[Tensor, "n m"], scale: Float[Tensor, " m"], best: Float[Tensor, "..."], temperature: float
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """For each row: the column that gets the most of its mass, the share that it gets, and the mean cosine.

    `best` is the cosine at which the kernel is 1, for each row or column.
    """
    parts = []
    size = max(1, _BLOCK_ELEMENTS // kernel.shape[1])
    for start in range(0, len(kernel), size):
        rows = kernel[start : start + size]
        shares = rows * scale
        shares /= shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        weights, columns = shares.max(1)
        cosines = rows.log().mul_(temperature).add_(best if best.ndim == 1 else best[start : start + size])
        parts.append((columns, weights, shares.mul_(cosines).nan_to_num_(0).sum(1)))  # 0 at log 0
    index, weight, cosine = (torch.cat(part) for part in zip(*parts, strict=True))
    return index, weight, cosine
