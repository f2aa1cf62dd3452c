"""`numerics=study`: the study's trainer (bartbussmann/BatchTopK, "BTK") to the letter, oddities included.

Definitions.md 1.1 (row BTK), 1.3 "How BTK differs" and 1.7 list the oddities; DESIGN.md §5 "study" is
binding. Two additions affect no weight: silence is counted for JumpReLU too, and BatchTopK gets a threshold
for inference.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import JumpReLUConfig, RunConfig
from sae_sweep.ops import Encoded, Kernels, mean_square
from sae_sweep.saes import architectures
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import Layout
from sae_sweep.saes.objectives import (
    ForwardOutput,
    PenalisedObjective,
    Rules,
)
from sae_sweep.saes.straight_through import heaviside, jump

DEAD_AFTER_BATCHES = 5
K_AUX = 512


class StudyRules(Rules):
    """Decoder rows normalised before Adam, so not quite unit after it; AuxK with the error attached."""

    initial_threshold = 1.0
    bandwidth = 0.001
    coefficient_warmup = 0.0
    unit_rows = "before"

    def dead_after(self, config: RunConfig) -> int:
        """Five batches, this one included: silence is counted before AuxK."""
        return DEAD_AFTER_BATCHES * config.batch

    def k_aux(self, d_in: int) -> int:
        """512 at every width."""
        del d_in
        return K_AUX

    def aux_latents(self, z: Tensor) -> Tensor:
        return z.relu()

    def aux_loss(
        self, reconstruction: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """Mean of ‖e - ê‖².

        e is not detached, so live features move too, towards an error that the dead ones can explain.
        """
        return mean_square(reconstruction - error)


class StudyJumpReLU(PenalisedObjective):
    """JumpReLU as BTK has it (definitions.md 1.3, a to e).

    The threshold is trained through its logarithm, whose gradient lacks the chain rule's factor θ; a ReLU
    precedes the jump; and L0's kernel is applied to the latents after the jump, which are 0 or above θ, so
    that only its upper half acts. `sae.threshold` is updated after each step, for inference.
    """

    def __init__(self, sae: SAE, config: RunConfig, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        self.architecture = cast(JumpReLUConfig, sae.architecture)
        cast(architectures.JumpReLU, sae).threshold.requires_grad_(False)
        self.log_threshold = nn.Parameter(self._log_of_threshold())
        self.bandwidth = self.architecture.bandwidth or rules.bandwidth

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        return jump(z.relu(), layout.broadcast(self._trained_threshold()), self.bandwidth)

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        """All above the lower edge of the kernel around their threshold.

        None if an edge is below 0, because then latents of 0 have a gradient too.
        """
        del dead_candidates
        floors = self.log_threshold.detach().exp() - self.bandwidth / 2
        return None if floors.min() < 0 else self.find_above(kernels, x, floors)

    def penalty(self, output: ForwardOutput) -> Float[Tensor, ""]:
        threshold = output.layout.broadcast(self._trained_threshold())
        active = heaviside(output.f, threshold, self.bandwidth)
        return self.architecture.l0_coefficient * active.sum() / output.layout.tokens

    def _trained_threshold(self) -> Tensor:
        return cast(Tensor, _ExpWithoutChainRule.apply(self.log_threshold))

    @torch.no_grad()
    def inputs_scaled(self) -> None:
        self.log_threshold.copy_(self._log_of_threshold())

    def _log_of_threshold(self) -> Tensor:
        """The SAE's thresholds as they are trained; of 0, which `init.sae` may bring, it is finite."""
        threshold = cast(architectures.JumpReLU, self.sae).threshold
        return threshold.clamp(min=torch.finfo(threshold.dtype).tiny).log()

    @torch.no_grad()
    def after_step(self) -> None:
        cast(architectures.JumpReLU, self.sae).threshold.copy_(self.log_threshold.exp())


class _ExpWithoutChainRule(torch.autograd.Function):
    """exp(x) in the forward pass, the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return grad
