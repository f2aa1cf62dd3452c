"""`numerics=modern`: current practice, with the faults of public trainers left out (DESIGN.md §5)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import Config, JumpReLUConfig
from sae_sweep.saes import architectures
from sae_sweep.saes.base import SAE
from sae_sweep.saes.objectives import (
    BatchTopKObjective,
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

    def dead_after(self, config: Config) -> int:
        return max(1, min(DEAD_AFTER_TOKENS, int(DEAD_AFTER_SHARE * config.tokens)))

    def auxk(
        self,
        z: Float[Tensor, "batch dead"],
        W_dec: Float[Tensor, "dead d_in"],
        error: Float[Tensor, "batch d_in"],
    ) -> Float[Tensor, ""]:
        """‖e - ê‖² over the variance of e, with ê from the d_in/2 dead features of highest pre-activation.

        e is detached, so that only dead features learn from it; and pre-activations are taken as they are:
        behind a ReLU the features that are dead because z < 0 everywhere would get no gradient.
        """
        target = error.detach()
        top = z.topk(min(target.shape[-1] // 2, z.shape[-1]), dim=-1, sorted=False)
        estimate = torch.zeros_like(z).scatter(-1, top.indices, top.values) @ W_dec
        variance = (target - target.mean(dim=0)).square().mean()
        return ((target - estimate).square().mean() / variance).nan_to_num(nan=0.0, posinf=0.0)

    @torch.no_grad()
    def before_step(self, W_dec: nn.Parameter) -> None:
        """Remove the gradient along each row: it would only change a norm that is set back anyway.

        Left in, it would also fill Adam's moments (Bricken et al. 2023; openai/sparse_autoencoder).
        """
        if W_dec.grad is not None:
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=-1, keepdim=True) * W_dec

    @torch.no_grad()
    def after_step(self, W_dec: nn.Parameter) -> None:
        W_dec.div_(W_dec.norm(dim=-1, keepdim=True))


class ModernJumpReLU(PenalisedObjective):
    """λ‖f‖₀ with the paper's straight-through gradients on a raw threshold (definitions.md 1.3)."""

    def __init__(self, sae: SAE, config: Config, rules: Rules) -> None:
        super().__init__(sae, config, rules)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    @property
    def threshold(self) -> nn.Parameter:
        """Of each feature; belongs to the SAE."""
        return cast(architectures.JumpReLU, self.sae).threshold

    def activate(self, z: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        return jump(z, self.threshold, self.bandwidth)

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        l0 = heaviside(seen.z, self.threshold, self.bandwidth).sum(dim=-1).mean()
        return self.architecture.l0_coefficient * l0

    @torch.no_grad()
    def after_step(self) -> None:
        """A raw threshold may be pushed below 0, where JumpReLU would let negative latents through."""
        super().after_step()
        self.threshold.clamp_(min=0.0)


OBJECTIVES: dict[str, type[Objective]] = {
    "topk": TopKObjective,
    "batchtopk": BatchTopKObjective,
    "jumprelu": ModernJumpReLU,
    "relu": ReLUObjective,
}
"""By `ArchitectureConfig.kind`."""
