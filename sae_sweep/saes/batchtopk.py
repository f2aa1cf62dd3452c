"""BatchTopK in training: one selection per batch, and the threshold that replaces it at inference."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import BatchTopKConfig, RunConfig
from sae_sweep.ops import Encoded, Kernels
from sae_sweep.saes import architectures
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import Layout, SparseLayout
from sae_sweep.saes.objectives import MAX_DENSITY, ForwardOutput, Rules, TopKObjective

_FLOOR_FRACTION = 0.95
"""The floor of a search, as a fraction of the smallest latent expected; batches differ by a few percent."""
_SAMPLE_TOKENS = 128
"""Tokens from which a better floor is estimated."""
_SAMPLE_EXCESS = 1.5
"""Latents of the sample above that floor, as a multiple of k per token."""


class BatchTopKObjective(TopKObjective):
    """TopK over the whole batch (definitions.md 1.2), and the threshold that replaces it at inference.

    The threshold is the bias-corrected running mean m / w of the smallest positive latent kept per batch,
    with m ← βm + (1-β)·min and w ← βw + (1-β)·1, both from 0. After one batch it is that batch's minimum.
    The study's trainer has no threshold; with `numerics=study` it serves evaluation and affects no weight.
    """

    minimum_mean: Float[Tensor, ""]
    """m, the running mean before its correction."""
    minimum_weight: Float[Tensor, ""]
    """w, the total weight in m."""
    latest_minimum: Float[Tensor, ""]
    """Minimum of the last batch. Part of the state: a search's floor decides which equal latents are kept."""

    def __init__(self, sae: SAE, config: RunConfig, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.register_buffer("minimum_mean", torch.zeros(()))
        self.register_buffer("minimum_weight", torch.zeros(()))
        self.register_buffer("latest_minimum", torch.tensor(torch.inf))
        self._above = torch.zeros(())

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        if isinstance(layout, SparseLayout):
            return z.relu()
        f = keep_top(z.flatten(), self._count(len(z))).view_as(z)
        self._update_threshold(f.detach())
        self._above = (z > self._threshold).sum()
        return f

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        """The batch's largest, selected from all above a floor that should be lower than all of them.

        The floor is 5% below the threshold or the last batch's minimum, whichever is less: early in
        training the running mean lags behind. If too few are above it, a sample of the tokens gives a
        better floor; if too many, the threshold alone is tried. The new threshold lies between the old one
        and this batch's minimum, so all above the new threshold are found too.
        """
        count = self._count(len(x))
        if count > MAX_DENSITY * len(x) * self.sae.d_sae:
            return None
        if self.minimum_weight > 0:
            floor = _FLOOR_FRACTION * torch.minimum(self._threshold, self.latest_minimum)
        else:
            floor = self._sampled_floor(x)
        found = self._find_above_floor(kernels, x, floor, dead_candidates)
        if found is None and self.latest_minimum < self._threshold:
            floor = _FLOOR_FRACTION * self._threshold
            found = self._find_above_floor(kernels, x, floor, dead_candidates)
        if found is not None and found.csr.nnz < count:
            floor = torch.minimum(floor, self._sampled_floor(x))
            found = self._find_above_floor(kernels, x, floor, dead_candidates)
        if found is None or found.csr.nnz < count:
            return None
        kept = _largest(found.values, count)
        self._update_threshold(found.values[kept])
        self._above = (found.values > self._threshold).sum()
        return Encoded(found.csr.keep(kept), found.values[kept], found.estimates)

    def _find_above_floor(
        self, kernels: Kernels, x: Tensor, floor: Tensor, dead_candidates: Tensor | None
    ) -> Encoded | None:
        max_nnz = int(MAX_DENSITY * len(x) * self.sae.d_sae)
        floors = floor.expand(self.sae.d_sae).contiguous()
        return kernels.encode_above(x, self.sae.W_enc.t(), self.sae.b_enc, floors, max_nnz, dead_candidates)

    def _sampled_floor(self, x: Tensor) -> Tensor:
        """The smallest latent if a sample of tokens keeps _SAMPLE_EXCESS times k per token; at least 0."""
        z = self._encode_linear(x[:_SAMPLE_TOKENS]).flatten()
        count = min(int(_SAMPLE_EXCESS * self._count(min(len(x), _SAMPLE_TOKENS))), len(z))
        return z.topk(count, sorted=False).values.min().clamp(min=0.0)

    def _count(self, tokens: int) -> int:
        return cast(BatchTopKConfig, self.sae.architecture).k * tokens

    @property
    def _threshold(self) -> Tensor:
        return cast(architectures.BatchTopK, self.sae).threshold

    @torch.no_grad()
    def _update_threshold(self, f: Tensor) -> None:
        minimum = torch.where(f > 0, f, torch.inf).min()
        self.latest_minimum.copy_(minimum)
        # a batch that keeps nothing (all pre-activations negative) has no minimum and changes nothing
        weight = (1 - cast(BatchTopKConfig, self.sae.architecture).threshold_momentum) * minimum.isfinite()
        self.minimum_mean += weight * (minimum.nan_to_num(posinf=0.0) - self.minimum_mean)
        self.minimum_weight += weight * (1 - self.minimum_weight)
        corrected = self.minimum_mean / self.minimum_weight
        self._threshold.copy_(torch.where(self.minimum_weight > 0, corrected, self._threshold))

    def extra_metrics(self, output: ForwardOutput) -> dict[str, Tensor]:
        return {"threshold": self._threshold.clone(), "l0_inference": self._above / output.layout.tokens}


def _largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest values."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.index_fill_(0, values.topk(count, sorted=False).indices, True)
