"""Accumulators of the evaluation: sums over batches, in float64."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ACTIVATION_EDGES = tuple(10 ** (exponent / 20) for exponent in range(-80, 81))
"""Bin edges of the activation histogram: 20 bins per decade; the outer bins also count what lies beyond."""
RARE = 0.05
"""Share of the tokens that count as rare."""
_BINS_PER_DECADE = 5
"""Bins of the density histogram, wide enough that the counts 1, 2, 3 leave no empty bins between them."""


@dataclass(frozen=True)
class Histogram:
    """Counts between edges."""

    counts: tuple[int, ...]
    """n counts."""
    edges: tuple[float, ...]
    """n + 1 edges, ascending."""


class ReconstructionError:
    """Explained variance, squared error and cosine in one space (SAE input, or raw residual).

    Explained variance is R² pooled over all tokens, 1 - E||e||² / (E||x||² - ||E x||²), as SAELens 6.54
    computes it. The sums are of x minus the mean of the first batch, in float64, so that the variance is
    not a small difference of large numbers even if a few dimensions are huge.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None
        self._squares = 0.0
        self._error = 0.0
        self._error_of_zero_latents = 0.0
        self._cosine = 0.0
        self._d_in = 0

    def update(
        self,
        x: Float[Tensor, "tokens d_in"],
        x_hat: Float[Tensor, "tokens d_in"],
        zero_hat: Float[Tensor, "tokens d_in"],
    ) -> None:
        """Add a batch: the input, its reconstruction, and what the SAE decodes with every latent at 0."""
        x, x_hat, zero_hat = _float64(x), _float64(x_hat), _float64(zero_hat)
        if self._shift is None or self._sum is None:
            self._shift, self._sum, self._d_in = x.mean(0), torch.zeros_like(x[0]), x.shape[1]
        shifted = x - self._shift
        self._sum = self._sum + shifted.sum(0)
        self._squares += shifted.square().sum().item()
        self._error += (x - x_hat).square().sum().item()
        self._error_of_zero_latents += (x - zero_hat).square().sum().item()
        # eps keeps the cosine with a zero vector at 0
        self._cosine += torch.cosine_similarity(x, x_hat, dim=1, eps=1e-30).sum().item()
        self.tokens += len(x)

    @property
    def variance(self) -> float:
        """E||x||² - ||E x||², summed over d_in."""
        if self._sum is None:
            return math.nan
        return self._squares / self.tokens - (self._sum / self.tokens).square().sum().item()

    @property
    def explained_variance(self) -> float:
        return 1 - divide(self.mse_sum, self.variance)

    @property
    def explained_variance_zero_latents(self) -> float:
        """Explained variance of bias and normalisation alone, with every latent at 0."""
        return 1 - divide(self._error_of_zero_latents / self.tokens, self.variance)

    @property
    def mse_sum(self) -> float:
        """||e||² averaged over tokens."""
        return self._error / self.tokens

    @property
    def mse(self) -> float:
        """`mse_sum` divided by d_in."""
        return self.mse_sum / self._d_in

    @property
    def cosine(self) -> float:
        """cos(x, x_hat) averaged over tokens; 0 for a token where either is zero."""
        return self._cosine / self.tokens


class FeatureStatistics:
    """How often and how strongly each feature fires. A feature fires where its activation is not 0."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.tokens = 0
        self._fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._sum = torch.zeros(d_sae, device=device, dtype=_widest(device))
        self._max = torch.zeros(d_sae, device=device)
        self._edges = torch.tensor(ACTIVATION_EDGES[1:-1], device=device)
        self._counts = torch.zeros(len(ACTIVATION_EDGES) - 1, dtype=torch.int64, device=device)

    def update(self, f: Float[Tensor, "tokens d_sae"]) -> None:
        """Add the activations of a batch."""
        fired = f != 0
        size = f.abs()
        self._fired += fired.sum(0)
        self._sum += size.sum(0, dtype=self._sum.dtype)
        self._max = torch.maximum(self._max, size.amax(0))
        bins = torch.bucketize(size[fired], self._edges, right=True)
        self._counts += torch.bincount(bins, minlength=len(self._counts))
        self.tokens += len(f)

    @property
    def densities(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each feature fires, float64 on the CPU."""
        return self._fired.cpu().double() / self.tokens

    @property
    def mean_activations(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over the tokens on which each feature fires; 0 for a dead one."""
        return self._sum.cpu().double() / self._fired.cpu().clamp(min=1)

    @property
    def max_activations(self) -> Float[Tensor, " d_sae"]:
        return self._max.cpu().double()

    @property
    def l0(self) -> float:
        """Mean number of features that fire per token."""
        return self._fired.sum().item() / self.tokens

    @property
    def l1(self) -> float:
        """Mean sum of activations per token."""
        return self._sum.sum().item() / self.tokens

    def activation_histogram(self) -> Histogram:
        """Histogram of all non-zero activations in log-spaced bins, without the empty bins at either end."""
        filled = self._counts.nonzero().flatten().tolist()
        first, last = (filled[0], filled[-1]) if filled else (0, len(self._counts) - 1)
        return Histogram(
            tuple(self._counts[first : last + 1].tolist()), tuple(ACTIVATION_EDGES[first : last + 2])
        )

    def density_histogram(self) -> Histogram:
        """Histogram of log10(density), one count per feature.

        The smallest density above 0 is the floor 1/N, N being the number of tokens. The bins from
        log10(1/N) to 0 hold the features that fired; the first bin, below the floor, holds the dead ones.
        """
        floor = -math.log10(self.tokens)
        bins = max(1, math.ceil(-floor * _BINS_PER_DECADE))
        edges = torch.linspace(floor, 0, bins + 1, dtype=torch.float64)
        fired = self._fired.cpu().double()
        alive = fired[fired > 0].log10() + floor
        where = torch.bucketize(alive, edges[1:-1], right=True)
        counts = torch.bincount(where, minlength=bins).tolist()
        width = -floor / bins
        return Histogram((int((fired == 0).sum()), *counts), (floor - width, *edges.tolist()))


def divide(numerator: float, denominator: float) -> float:
    """Quotient; NaN if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _float64(x: Tensor) -> Tensor:
    """x in float64, moved to the CPU from an Apple GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class Errors:
    """Reconstruction errors of an SAE in SAE-input space, raw, and in SAE-input space of rare tokens."""

    def __init__(self) -> None:
        self.normalised, self.raw, self.rare = (ReconstructionError() for _ in range(3))


def rare_tokens(
    tokens: Int[np.ndarray, "n seq"], mask: Bool[np.ndarray, "n seq"], share: float = RARE
) -> Bool[np.ndarray, "n seq"]:
    """Positions of the rarest tokens: all that occur at most so often, at most `share` of the unmasked ones.

    If even those that occur least often are more, they alone.
    """
    ids, counts = np.unique(tokens[mask], return_counts=True)
    held = np.cumsum(np.bincount(counts) * np.arange(counts.max() + 1))
    most = max(int(np.searchsorted(held, share * mask.sum(), side="right")) - 1, int(counts.min()))
    return np.isin(tokens, ids[counts <= most]) & mask
