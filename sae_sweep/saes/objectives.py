"""What each architecture is trained to do; where the presets differ, `Rules` says how.

Every loss is in SAE-input space and its squared error is a mean over d_in, so an input of unit variance
that is not reconstructed at all costs about 1, at every width (DESIGN.md §5).
"""

from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_sweep.config import BatchTopKConfig, Config, JumpReLUConfig, ReLUConfig, TopKConfig
from sae_sweep.saes import architectures
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE
from sae_sweep.saes.schedule import ramp


class Seen(NamedTuple):
    """One batch as the SAE saw it in training."""

    z: Float[Tensor, "batch d_sae"]
    """Pre-activations."""
    f: Float[Tensor, "batch d_sae"]
    """Latents (BatchTopK: chosen over the whole batch)."""
    error: Float[Tensor, "batch d_in"]
    """x - x̂ in SAE-input space."""
    dead: Bool[Tensor, " d_sae"]
    """Features silent for so long, this batch included, that they count as dead."""


class Outcome(NamedTuple):
    """What one batch costs."""

    loss: Float[Tensor, ""]
    """What is minimised: mse + coefficient x (AuxK or sparsity)."""
    mse: Float[Tensor, ""]
    """Squared error, mean over batch and d_in."""
    aux: Float[Tensor, ""]
    """AuxK before its coefficient; 0 where there is none or nothing is dead."""
    seen: Seen


class Rules:
    """One preset: everything in which `modern` and `study` differ, but for JumpReLU's gradients."""

    initial_threshold: ClassVar[float]
    """Of JumpReLU, for inputs of unit variance."""
    bandwidth: ClassVar[float]
    """Of JumpReLU's straight-through kernel, in the same units."""
    coefficient_warmup: ClassVar[float]
    """Share of the steps over which the coefficients of L0 and L1 rise to their value."""

    def dead_after(self, config: Config) -> int:
        """Tokens of silence that make a feature dead."""
        raise NotImplementedError

    def auxk(
        self,
        z: Float[Tensor, "batch dead"],
        W_dec: Float[Tensor, "dead d_in"],
        error: Float[Tensor, "batch d_in"],
    ) -> Float[Tensor, ""]:
        """The loss that revives dead features, given theirs alone and the SAE's error x - x̂."""
        raise NotImplementedError

    def before_step(self, W_dec: nn.Parameter) -> None:
        """Called between backward and Adam."""
        raise NotImplementedError

    def after_step(self, W_dec: nn.Parameter) -> None:
        """Called after Adam."""


class Objective(nn.Module):
    """An SAE with its loss and all that training carries from step to step, but for Adam's moments."""

    silent: Int[Tensor, " d_sae"]
    """Tokens since each feature last fired."""

    def __init__(self, sae: SAE, config: Config, rules: Rules) -> None:
        super().__init__()
        self.sae = sae
        self.rules = rules
        self.dead_after = rules.dead_after(config)
        self.register_buffer("silent", torch.zeros(sae.d_sae, dtype=torch.int64))

    def activate(self, z: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """Latents as training sees them."""
        return self.sae.activate(z)

    def extra(self, seen: Seen, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What the loss has besides the squared error: (with its coefficient, AuxK without it)."""
        raise NotImplementedError

    def forward(self, xn: Float[Tensor, "batch d_in"], step: int) -> Outcome:
        """Loss of a normalised batch at step `step` (from 0); counts silence."""
        z = self.sae.pre_activations(xn)
        f = self.activate(z)
        error = xn - self.sae.decode_normalised(f)
        mse = error.square().mean()
        seen = Seen(z, f, error, self._count_silence(f))
        weighted, aux = self.extra(seen, step)
        return Outcome(mse + weighted, mse, aux, seen)

    @torch.no_grad()
    def _count_silence(self, f: Tensor) -> Tensor:
        fired = (f > 0).any(dim=0)
        self.silent = torch.where(fired, 0, self.silent + len(f))
        return self.silent >= self.dead_after

    def before_step(self) -> None:
        """Called between backward (and clipping) and Adam."""
        self.rules.before_step(self.sae.W_dec)

    def after_step(self) -> None:
        """Called after Adam."""
        self.rules.after_step(self.sae.W_dec)

    def extra_metrics(self, seen: Seen) -> dict[str, Tensor]:
        """Numbers that only this architecture has."""
        del seen
        return {}


class TopKObjective(Objective):
    """Squared error and AuxK (definitions.md 1.1)."""

    def extra(self, seen: Seen, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        del step
        # The dead are gathered, at the price of one wait for the device, because they are few: scoring all
        # d_sae features again would cost as much as the main reconstruction.
        dead = seen.dead.nonzero().squeeze(-1)
        if len(dead) == 0:
            return seen.error.new_zeros(()), seen.error.new_zeros(())
        aux = self.rules.auxk(seen.z[:, dead], self.sae.W_dec[dead], seen.error)
        return cast(TopKConfig, self.sae.architecture).aux_coefficient * aux, aux


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

    def __init__(self, sae: SAE, config: Config, rules: Rules) -> None:
        super().__init__(sae, config, rules)
        self.register_buffer("minimum_mean", torch.zeros(()))
        self.register_buffer("minimum_weight", torch.zeros(()))

    def activate(self, z: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        k = cast(BatchTopKConfig, self.sae.architecture).k
        f = keep_top(z.flatten(), k * len(z)).view_as(z)
        self._follow_minimum(f.detach())
        return f

    @torch.no_grad()
    def _follow_minimum(self, f: Tensor) -> None:
        minimum = torch.where(f > 0, f, torch.inf).min()
        # A batch that keeps nothing (all pre-activations negative) has no minimum and leaves no trace.
        share = (1 - cast(BatchTopKConfig, self.sae.architecture).threshold_momentum) * minimum.isfinite()
        self.minimum_mean += share * (minimum.nan_to_num(posinf=0.0) - self.minimum_mean)
        self.minimum_weight += share * (1 - self.minimum_weight)
        corrected = self.minimum_mean / self.minimum_weight
        sae = cast(architectures.BatchTopK, self.sae)
        sae.threshold.copy_(torch.where(self.minimum_weight > 0, corrected, sae.threshold))

    def extra_metrics(self, seen: Seen) -> dict[str, Tensor]:
        threshold = cast(architectures.BatchTopK, self.sae).threshold
        l0 = (seen.z > threshold).sum(dim=-1).float().mean()
        return {"threshold": threshold.clone(), "l0_inference": l0}


class PenalisedObjective(Objective):
    """Squared error and a sparsity penalty whose coefficient warms up."""

    def __init__(self, sae: SAE, config: Config, rules: Rules) -> None:
        super().__init__(sae, config, rules)
        share = cast(JumpReLUConfig | ReLUConfig, sae.architecture).warmup_fraction
        self.warmup_steps = (rules.coefficient_warmup if share is None else share) * config.steps

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        """Sparsity of the batch, times its coefficient."""
        raise NotImplementedError

    def extra(self, seen: Seen, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return ramp(step, self.warmup_steps) * self.penalty(seen), seen.error.new_zeros(())


class ReLUObjective(PenalisedObjective):
    """Squared error and L1 (definitions.md 1.5); unit decoder rows keep f from shrinking at no cost."""

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        return cast(ReLUConfig, self.sae.architecture).l1_coefficient * seen.f.sum(dim=-1).mean()
