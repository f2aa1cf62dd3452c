"""`numerics=study`: the trainer of the study (bartbussmann/BatchTopK) to the letter, oddities included.

Definitions.md 1.1 (row BTK), 1.3 "How BTK differs" and 1.7 list them; DESIGN.md §5 "study" binds. Two things
that never touch a weight are done better here: silence is counted for JumpReLU too, and BatchTopK gets a
threshold for inference.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import Config, JumpReLUConfig
from sae_sweep.saes import architectures
from sae_sweep.saes.architectures import keep_top
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

DEAD_AFTER_BATCHES = 5
K_AUX = 512


class StudyRules(Rules):
    """Decoder rows normalised before Adam, so never quite unit after it; AuxK with the residual attached."""

    initial_threshold = 1.0
    bandwidth = 0.001
    coefficient_warmup = 0.0

    def dead_after(self, config: Config) -> int:
        """Five batches, the present one included: silence is counted before AuxK looks."""
        return DEAD_AFTER_BATCHES * config.batch

    def auxk(
        self,
        z: Float[Tensor, "batch dead"],
        W_dec: Float[Tensor, "dead d_in"],
        error: Float[Tensor, "batch d_in"],
    ) -> Float[Tensor, ""]:
        """Mean of ‖e - ê‖² with ê from at most 512 dead features, after their ReLU.

        e is not detached: the live features too are moved, towards an error that the dead can explain.
        """
        estimate = keep_top(z.relu(), min(K_AUX, z.shape[-1])) @ W_dec
        return (estimate - error).square().mean()

    @torch.no_grad()
    def before_step(self, W_dec: nn.Parameter) -> None:
        """Unit norm for the rows, no gradient along them; Adam then moves them off the sphere again."""
        W_dec.div_(W_dec.norm(dim=-1, keepdim=True))
        if W_dec.grad is not None:
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=-1, keepdim=True) * W_dec


class StudyJumpReLU(PenalisedObjective):
    """JumpReLU as BTK has it (definitions.md 1.3, a to e).

    The threshold is trained through its logarithm, whose gradient lacks the chain rule's factor θ; a ReLU
    comes before the jump; and L0's kernel is laid on the latents after the jump, which are 0 or above θ, so
    that only its upper half ever acts. `sae.threshold` follows for inference.
    """

    def __init__(self, sae: SAE, config: Config, rules: Rules) -> None:
        super().__init__(sae, config, rules)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        threshold = cast(architectures.JumpReLU, sae).threshold.requires_grad_(False)
        self.log_threshold = nn.Parameter(threshold.log())
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    def activate(self, z: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        return jump(z.relu(), self._trained_threshold(), self.bandwidth)

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        l0 = heaviside(seen.f, self._trained_threshold(), self.bandwidth).sum(dim=-1).mean()
        return self.architecture.l0_coefficient * l0

    def _trained_threshold(self) -> Tensor:
        return cast(Tensor, _ExpWithoutChainRule.apply(self.log_threshold))

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        cast(architectures.JumpReLU, self.sae).threshold.copy_(self.log_threshold.exp())


class _ExpWithoutChainRule(torch.autograd.Function):
    """exp(x) whose gradient is passed on as if it were x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return grad


OBJECTIVES: dict[str, type[Objective]] = {
    "topk": TopKObjective,
    "batchtopk": BatchTopKObjective,
    "jumprelu": StudyJumpReLU,
    "relu": ReLUObjective,
}
"""By `ArchitectureConfig.kind`."""
