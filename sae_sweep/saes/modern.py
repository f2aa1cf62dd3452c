"""`numerics=modern`: current practice, with the faults of public trainers left out (DESIGN.md §5)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import Config, JumpReLUConfig
from sae_sweep.ops import Found, Kernels, mean_square, total_variance
from sae_sweep.saes import architectures
from sae_sweep.saes.base import SAE
from sae_sweep.saes.batchtopk import BatchTopKObjective
from sae_sweep.saes.layouts import Form
from sae_sweep.saes.objectives import (
    Objective,
    PenalisedObjective,
    ReLUObjective,
    Rules,
    Seen,
    TopKObjective,
)
from sae_sweep.saes.straight_through import heaviside, jump

DEAD_AFTER_TOKENS = 10_000_000
"""Gao et al. 2024, appendix A.2."""
DEAD_AFTER_SHARE = 0.1
"""Of the budget: at short budgets 10M tokens of silence would never come."""


class ModernRules(Rules):
    """Decoder rows of unit norm after every step; AuxK of Gao et al. 2024."""

    # Fresh pre-activations have variance 2 / expansion factor: at x16 a threshold of 1 leaves 29 of 12,288
    # features active. Thresholds settle near sqrt(l0_coefficient x d_in), where keeping a latent pays for its
    # coefficient: 1.2 at the baseline. Starting at 0.1 the dictionary does not move until they have climbed.
    initial_threshold = 1.0
    # As in SAELens; the paper's 0.001 is for inputs whose norm, not whose entries, are near 1.
    bandwidth = 0.05
    coefficient_warmup = 0.1
    # The gradient along a row is removed: it would only change a norm that is set back anyway, and fill
    # Adam's moments (Bricken et al. 2023; openai/sparse_autoencoder).
    unit_rows = "after"

    def dead_after(self, config: Config) -> int:
        return max(1, min(DEAD_AFTER_TOKENS, int(DEAD_AFTER_SHARE * config.tokens)))

    def k_aux(self, d_in: int) -> int:
        return max(1, d_in // 2)

    def aux_latents(self, z: Tensor) -> Tensor:
        """As they are: behind a ReLU, features that are dead because z < 0 everywhere would learn nothing."""
        return z

    def aux_loss(
        self, estimate: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """‖e - ê‖² over the variance of e, which is detached, so that only dead features learn from it."""
        target = error.detach()
        return (mean_square(target - estimate) / total_variance(target)).nan_to_num(nan=0.0, posinf=0.0)


class ModernJumpReLU(PenalisedObjective):
    """λ‖f‖₀ with the paper's straight-through gradients on a raw threshold (definitions.md 1.3)."""

    def __init__(self, sae: SAE, config: Config, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    @property
    def threshold(self) -> nn.Parameter:
        """Of each feature; belongs to the SAE."""
        return cast(architectures.JumpReLU, self.sae).threshold

    def activate(self, z: Tensor, form: Form) -> Tensor:
        return jump(z, form.spread(self.threshold), self.bandwidth)

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        """What is above the lower edge of its threshold's kernel."""
        del watched
        return self.find_above(kernels, x, self.threshold.detach() - self.bandwidth / 2)

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        jumps = heaviside(seen.z, seen.form.spread(self.threshold), self.bandwidth)
        return self.architecture.l0_coefficient * jumps.sum() / seen.form.tokens

    @torch.no_grad()
    def after_step(self) -> None:
        """A raw threshold may be pushed below 0, where JumpReLU would let negative latents through."""
        self.threshold.clamp_(min=0.0)


OBJECTIVES: dict[str, type[Objective]] = {
    "topk": TopKObjective,
    "batchtopk": BatchTopKObjective,
    "jumprelu": ModernJumpReLU,
    "relu": ReLUObjective,
}
"""By `ArchitectureConfig.kind`."""
