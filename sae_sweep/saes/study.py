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
from sae_sweep.ops import Found, Kernels, mean_square
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

DEAD_AFTER_BATCHES = 5
K_AUX = 512


class StudyRules(Rules):
    """Decoder rows normalised before Adam, so never quite unit after it; AuxK with the residual attached."""

    initial_threshold = 1.0
    bandwidth = 0.001
    coefficient_warmup = 0.0
    unit_rows = "before"

    def dead_after(self, config: Config) -> int:
        """Five batches, the present one included: silence is counted before AuxK looks."""
        return DEAD_AFTER_BATCHES * config.batch

    def k_aux(self, d_in: int) -> int:
        """At every width."""
        del d_in
        return K_AUX

    def aux_latents(self, z: Tensor) -> Tensor:
        return z.relu()

    def aux_loss(
        self, estimate: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """Mean of ‖e - ê‖².

        e is not detached: the live features too are moved, towards an error that the dead can explain.
        """
        return mean_square(estimate - error)


class StudyJumpReLU(PenalisedObjective):
    """JumpReLU as BTK has it (definitions.md 1.3, a to e).

    The threshold is trained through its logarithm, whose gradient lacks the chain rule's factor θ; a ReLU
    comes before the jump; and L0's kernel is laid on the latents after the jump, which are 0 or above θ, so
    that only its upper half ever acts. `sae.threshold` follows for inference.
    """

    def __init__(self, sae: SAE, config: Config, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        threshold = cast(architectures.JumpReLU, sae).threshold.requires_grad_(False)
        self.log_threshold = nn.Parameter(threshold.log())
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    def activate(self, z: Tensor, form: Form) -> Tensor:
        return jump(z.relu(), form.spread(self._trained_threshold()), self.bandwidth)

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        """What is above the lower edge of its threshold's kernel; with an edge below 0, all zeros count."""
        del watched
        floors = self.log_threshold.detach().exp() - self.bandwidth / 2
        return None if floors.min() < 0 else self.find_above(kernels, x, floors)

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        jumps = heaviside(seen.f, seen.form.spread(self._trained_threshold()), self.bandwidth)
        return self.architecture.l0_coefficient * jumps.sum() / seen.form.tokens

    def _trained_threshold(self) -> Tensor:
        return cast(Tensor, _ExpWithoutChainRule.apply(self.log_threshold))

    @torch.no_grad()
    def after_step(self) -> None:
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
