"""BatchTopK in training: one choice for the whole batch, and the threshold that replaces it later."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import BatchTopKConfig, Config
from sae_sweep.ops import Found, Kernels
from sae_sweep.saes import architectures
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import Entries, Form
from sae_sweep.saes.objectives import DENSE_SHARE, Rules, Seen, TopKObjective

_FLOOR_SHARE = 0.95
"""BatchTopK searches above this share of what the last batch kept; batches differ by a few percent."""
_SAMPLE = 128
"""Tokens that show BatchTopK a better floor."""
_SAMPLE_SHARE = 1.5
"""How many times k latents a token of the sample are to be above that floor."""


class BatchTopKObjective(TopKObjective):
    """TopK over the whole batch at once (definitions.md 1.2), and the threshold that stands for it later.

    The threshold is the mean over batches of the smallest positive latent that was kept: a running mean
    m ← βm + (1-β)·min from the first batch on. m starts at 0 and so is too small at first; divided by
    w ← βw + (1-β)·1, the weight it has gathered, it is not (Adam's bias correction), and after one batch it
    is that batch's own minimum. The study's trainer has no threshold; there it is kept for evaluation and
    touches no weight.
    """

    minimum_mean: Float[Tensor, ""]
    """m."""
    minimum_weight: Float[Tensor, ""]
    """w."""
    latest_minimum: Float[Tensor, ""]
    """Of the last batch. The floor of a search decides which of equal latents are kept: it is state."""

    def __init__(self, sae: SAE, config: Config, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.register_buffer("minimum_mean", torch.zeros(()))
        self.register_buffer("minimum_weight", torch.zeros(()))
        self.register_buffer("latest_minimum", torch.tensor(torch.inf))
        self._above = torch.zeros(())

    def activate(self, z: Tensor, form: Form) -> Tensor:
        if isinstance(form, Entries):
            return z.relu()
        f = keep_top(z.flatten(), self._count(len(z))).view_as(z)
        self._follow_minimum(f.detach())
        self._above = (z > self._threshold).sum()
        return f

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        """Everything above a floor that lies below what the batch will keep; then the largest of that.

        The floor is the threshold so far, or what the last batch kept where that is less (early in training
        the running mean lags behind), somewhat lowered. Where too few are above it, a sample of the tokens
        shows a better one; where too many are, the threshold alone is tried. As the new threshold is between
        the one so far and this batch's minimum, all that is above it is among those found too.
        """
        count = self._count(len(x))
        if count > DENSE_SHARE * len(x) * self.sae.d_sae:
            return None
        if self.minimum_weight > 0:
            first = _FLOOR_SHARE * torch.minimum(self._threshold, self.latest_minimum)
        else:
            first = self._sampled_floor(x)
        found = self._found_above(kernels, x, first, watched)
        if found is None and self.latest_minimum < self._threshold:
            first = _FLOOR_SHARE * self._threshold
            found = self._found_above(kernels, x, first, watched)
        if found is not None and len(found.values) < count:
            found = self._found_above(kernels, x, torch.minimum(first, self._sampled_floor(x)), watched)
        if found is None or len(found.values) < count:
            return None
        kept = _largest(found.values, count)
        self._follow_minimum(found.values[kept])
        self._above = (found.values > self._threshold).sum()
        return Found(found.code.keep(kept), found.values[kept], found.estimates)

    def _found_above(
        self, kernels: Kernels, x: Tensor, floor: Tensor, watched: Tensor | None
    ) -> Found | None:
        most = int(DENSE_SHARE * len(x) * self.sae.d_sae)
        floors = floor.expand(self.sae.d_sae).contiguous()
        return kernels.above(x, self.sae.W_enc.t(), self.sae.b_enc, floors, most, watched)

    def _sampled_floor(self, x: Tensor) -> Tensor:
        """What _SAMPLE tokens keep, if they keep _SAMPLE_SHARE times what the batch does; at least 0."""
        z = x[:_SAMPLE] @ self.sae.W_enc
        z = (z if self.sae.b_enc is None else z + self.sae.b_enc).flatten()
        count = min(int(_SAMPLE_SHARE * self._count(min(len(x), _SAMPLE))), len(z))
        return z.topk(count, sorted=False).values.min().clamp(min=0.0)

    def _count(self, tokens: int) -> int:
        return cast(BatchTopKConfig, self.sae.architecture).k * tokens

    @property
    def _threshold(self) -> Tensor:
        return cast(architectures.BatchTopK, self.sae).threshold

    @torch.no_grad()
    def _follow_minimum(self, f: Tensor) -> None:
        minimum = torch.where(f > 0, f, torch.inf).min()
        self.latest_minimum.copy_(minimum)
        # A batch that keeps nothing (all pre-activations negative) has no minimum and leaves no trace.
        share = (1 - cast(BatchTopKConfig, self.sae.architecture).threshold_momentum) * minimum.isfinite()
        self.minimum_mean += share * (minimum.nan_to_num(posinf=0.0) - self.minimum_mean)
        self.minimum_weight += share * (1 - self.minimum_weight)
        corrected = self.minimum_mean / self.minimum_weight
        self._threshold.copy_(torch.where(self.minimum_weight > 0, corrected, self._threshold))

    def extra_metrics(self, seen: Seen) -> dict[str, Tensor]:
        return {"threshold": self._threshold.clone(), "l0_inference": self._above / seen.form.tokens}


def _largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.index_fill_(0, values.topk(count, sorted=False).indices, True)
