"""`numerics=modern`: current practice without the faults of public trainers (DESIGN.md §5)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import JumpReLUConfig, RunConfig
from sae_sweep.ops import Encoded, Kernels, mean_square, total_variance
from sae_sweep.saes import architectures
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import Layout
from sae_sweep.saes.objectives import (
    ForwardOutput,
    PenalisedObjective,
    Rules,
)
from sae_sweep.saes.straight_through import heaviside, jump

DEAD_AFTER_TOKENS = 10_000_000
"""Gao et al. 2024, appendix A.2."""
DEAD_AFTER_FRACTION = 0.1
"""Fraction of the budget, if that is less: in short runs 10M tokens of silence would never come."""


class ModernRules(Rules):
    """Decoder rows of unit norm after every step; AuxK of Gao et al. 2024."""

    # Initial pre-activations have variance 2 / expansion factor: at x16 a threshold of 1 leaves 29 of 12,288
    # features active. Thresholds converge near sqrt(l0_coefficient x d_in), where keeping a latent is worth
    # its coefficient: 1.2 at the baseline. From 0.1 the dictionary would not move until they had risen.
    initial_threshold = 1.0
    # As in SAELens; the paper's 0.001 is for inputs of norm near 1, not of numbers near 1.
    bandwidth = 0.05
    coefficient_warmup = 0.1
    # The gradient along a row is removed: it would only change a norm that is reset anyway, and distort
    # Adam's moments (Bricken et al. 2023; openai/sparse_autoencoder).
    unit_rows = "after"

    def dead_after(self, config: RunConfig) -> int:
        return max(1, min(DEAD_AFTER_TOKENS, int(DEAD_AFTER_FRACTION * config.tokens)))

    def k_aux(self, d_in: int) -> int:
        return max(1, d_in // 2)

    def aux_latents(self, z: Tensor) -> Tensor:
        """z itself: after a ReLU, features that are dead because z < 0 everywhere would learn nothing."""
        return z

    def aux_loss(
        self, reconstruction: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """‖e - ê‖² over the variance of e; e is detached, so only dead features learn from it."""
        target = error.detach()
        return (mean_square(target - reconstruction) / total_variance(target)).nan_to_num(nan=0.0, posinf=0.0)


class ModernJumpReLU(PenalisedObjective):
    """L0 penalty with the paper's straight-through gradients to a raw threshold (definitions.md 1.3)."""

    def __init__(self, sae: SAE, config: RunConfig, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    @property
    def threshold(self) -> nn.Parameter:
        """The SAE's threshold of each feature."""
        return cast(architectures.JumpReLU, self.sae).threshold

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        return jump(z, layout.broadcast(self.threshold), self.bandwidth)

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        """All above the lower edge of the kernel around their threshold."""
        del dead_candidates
        return self.find_above(kernels, x, self.threshold.detach() - self.bandwidth / 2)

    def penalty(self, output: ForwardOutput) -> Float[Tensor, ""]:
        active = heaviside(output.z, output.layout.broadcast(self.threshold), self.bandwidth)
        return self.architecture.l0_coefficient * active.sum() / output.layout.tokens

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep thresholds from falling below 0, where JumpReLU would let negative latents through."""
        self.threshold.clamp_(min=0.0)
