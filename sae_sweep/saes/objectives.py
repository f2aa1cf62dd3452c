"""What each architecture is trained to do; where the presets differ, `Rules` says how.

Every loss is in SAE-input space and its squared error is a mean over d_in, so an input of unit variance
that is not reconstructed at all costs about 1, at every width (DESIGN.md §5).

Each objective sees a batch in one of two ways, with the same result but for rounding: densely, by the
formulas as they are written, or through kernels that find the active latents and compute nothing else
(`sae_sweep.ops`).
"""

from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_sweep import ops
from sae_sweep.config import Config, JumpReLUConfig, ReLUConfig, TopKConfig
from sae_sweep.ops import Found, Kernels, Sparse
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import Dense, Entries, Form
from sae_sweep.saes.schedule import ramp

DENSE_SHARE = 1 / 8
"""Share of active latents from which on sparse products cost more than dense ones."""
DENSE_AUX_SHARE = 3 / 8
"""The same of AuxK's share of the dead features, whose dense products are small."""
_PROBE = 32
"""Tokens whose density is looked at before a batch is searched."""


class Seen(NamedTuple):
    """One batch as the SAE saw it in training."""

    form: Form
    """How z and f are laid out."""
    z: Tensor
    """Pre-activations; of the active latents and those near a threshold, or all."""
    f: Tensor
    """Latents (BatchTopK: chosen over the whole batch)."""
    reconstruction: Float[Tensor, "batch d_in"]
    """Without `b_dec`."""
    dead: Bool[Tensor, " d_sae"]
    """Features silent for so long, this batch included, that they count as dead."""
    estimate: Float[Tensor, "batch d_in"] | None
    """AuxK's reconstruction of the error from dead features; None where there is none or nothing is dead."""


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
    unit_rows: ClassVar[str]
    """When decoder rows are set to norm 1: `before` Adam's step or `after` it."""

    def dead_after(self, config: Config) -> int:
        """Tokens of silence that make a feature dead."""
        raise NotImplementedError

    def k_aux(self, d_in: int) -> int:
        """Dead features a token that AuxK uses, if there are as many."""
        raise NotImplementedError

    def aux_latents(self, z: Tensor) -> Tensor:
        """What AuxK decodes, of the dead features with the highest pre-activations z."""
        raise NotImplementedError

    def aux_loss(
        self, estimate: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """The loss that revives dead features, given what they make of the SAE's error x - x̂."""
        raise NotImplementedError


class Objective(nn.Module):
    """An SAE with its loss and all that training carries from step to step, but for Adam's moments."""

    silent: Int[Tensor, " d_sae"]
    """Tokens since each feature last fired."""
    has_aux: ClassVar[bool] = False
    """Whether dead features are revived by AuxK."""

    def __init__(self, sae: SAE, config: Config, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.sae = sae
        self.rules = rules
        self.dead_after = rules.dead_after(config)
        self._kernels = kernels
        self.register_buffer("silent", torch.zeros(sae.d_sae, dtype=torch.int64))

    def activate(self, z: Tensor, form: Form) -> Tensor:
        """Latents as training sees them, from all pre-activations or from those that `find` chose."""
        raise NotImplementedError

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        """The entries that `activate` or its gradient can make anything of; None if that is too many.

        Estimates of the features `watched` are left over from it, if the kernels can.
        """
        raise NotImplementedError

    def extra(self, seen: Seen, error: Tensor, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What the loss has besides the squared error: (with its coefficient, AuxK without it)."""
        raise NotImplementedError

    def forward(self, xn: Float[Tensor, "batch d_in"], step: int) -> Outcome:
        """Loss of a normalised batch at step `step` (from 0); counts silence."""
        centred = xn - self.sae.b_dec
        x = centred if self.sae.subtracts_b_dec else xn
        seen = None if self._kernels is None else self._see_entries(self._kernels, x)
        if seen is None:
            seen = self._see_all(x)
        error = centred - seen.reconstruction
        mse = ops.mean_square(error)
        weighted, aux = self.extra(seen, error, step)
        return Outcome(mse + weighted, mse, aux, seen)

    def _see_all(self, x: Tensor) -> Seen:
        """By the formulas; the gradient to `b_dec` flows through x."""
        sae = self.sae
        z = x @ sae.W_enc if sae.b_enc is None else x @ sae.W_enc + sae.b_enc
        form = Dense(len(x))
        f = self.activate(z, form)
        dead, which = self._count_silence(form.fired(f.detach()), len(x))
        estimate = None if which is None else self._estimate(z[:, which], which)
        return Seen(form, z, f, f @ sae.W_dec, dead, estimate)

    def _see_entries(self, kernels: Kernels, x: Tensor) -> Seen | None:
        """Through the kernels; None if the batch is too dense for them."""
        sae = self.sae
        constant = x.detach()
        with torch.no_grad():
            watched = self._watched(kernels, len(x))
            found = self.find(kernels, constant, watched)
            if found is None:
                return None
            form = Entries(Sparse(kernels, found.code))
            fired = form.fired(self.activate(found.values, form))
        dead, which = self._count_silence(fired, len(x))
        chosen = [(form.sparse, found.values)]
        few = which is not None and self._is_few(which)
        if which is not None and few:
            estimates = None
            if watched is not None and found.estimates is not None:
                estimates = found.estimates.keep(dead[watched])
            chosen.append(self._find_dead(kernels, constant, which, estimates))
        b_dec = sae.b_dec if sae.subtracts_b_dec else None
        z, *of_dead = ops.pre_activations(constant, sae.W_enc, sae.b_enc, b_dec, chosen)
        f = self.activate(z, form)
        latents = [f, *(self.rules.aux_latents(values) for values in of_dead)]
        codes = [sparse for sparse, _ in chosen]
        reconstruction, *of_error = ops.decode(list(zip(codes, latents, strict=True)), sae.W_dec)
        if which is not None and not few:
            of_error = [self._estimate(self._pre_activations(x, which), which)]
        return Seen(form, z, f, reconstruction, dead, of_error[0] if of_error else None)

    def _watched(self, kernels: Kernels, tokens: int) -> Tensor | None:
        """The features that will be dead if this batch does not activate them, if AuxK can use estimates."""
        if not (self.has_aux and kernels.watches):
            return None
        dying = (self.silent + tokens >= self.dead_after).nonzero().squeeze(-1)
        return dying if self._is_few(dying) else None

    def _is_few(self, dead: Tensor) -> bool:
        """Whether AuxK uses so few of the dead that sparse products cost less than dense ones."""
        return self._k_aux(dead) <= DENSE_AUX_SHARE * len(dead)

    def _k_aux(self, dead: Tensor) -> int:
        return min(self.rules.k_aux(self.sae.d_in), len(dead))

    def _pre_activations(self, x: Tensor, features: Tensor) -> Float[Tensor, "batch features"]:
        z = x @ self.sae.W_enc.t()[features].t()
        return z if self.sae.b_enc is None else z + self.sae.b_enc[features]

    def _estimate(self, z: Float[Tensor, "batch dead"], dead: Tensor) -> Float[Tensor, "batch d_in"]:
        """What the dead features with the highest pre-activations, whatever their sign, decode to."""
        k = self._k_aux(dead)
        if k == len(dead):
            return self.rules.aux_latents(z) @ self.sae.W_dec[dead]
        if self._kernels is None:
            columns = z.topk(k, dim=-1, sorted=False).indices
        else:
            columns = self._kernels.largest_of(z.detach(), k)[0].long()
        kept = self.rules.aux_latents(z.gather(-1, columns))
        return torch.zeros_like(z).scatter(-1, columns, kept) @ self.sae.W_dec[dead]

    @torch.no_grad()
    def _find_dead(
        self, kernels: Kernels, x: Tensor, dead: Tensor, estimates: ops.Estimates | None
    ) -> tuple[Sparse, Tensor]:
        """The same features as entries."""
        W, b = self.sae.W_enc.t().index_select(0, dead), self.sae.b_enc
        found = kernels.largest_watched(x, W, None if b is None else b[dead], self._k_aux(dead), estimates)
        return Sparse(kernels, found.code, dead), found.values

    @torch.no_grad()
    def _count_silence(self, fired: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Which features are dead as a mask; and as indices, if AuxK has work to do.

        The dead are gathered, at the price of one wait for the device, because they are few: scoring all
        d_sae features again would cost as much as the main reconstruction.
        """
        self.silent = torch.where(fired, 0, self.silent + tokens)
        dead = self.silent >= self.dead_after
        which = dead.nonzero().squeeze(-1) if self.has_aux else None
        return dead, which if which is not None and len(which) else None

    def after_step(self) -> None:
        """Called after Adam."""

    def extra_metrics(self, seen: Seen) -> dict[str, Tensor]:
        """Numbers that only this architecture has."""
        del seen
        return {}


class TopKObjective(Objective):
    """Squared error and AuxK (definitions.md 1.1)."""

    has_aux = True

    def activate(self, z: Tensor, form: Form) -> Tensor:
        return keep_top(z, cast(TopKConfig, self.sae.architecture).k) if isinstance(form, Dense) else z.relu()

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        k = cast(TopKConfig, self.sae.architecture).k
        if k > DENSE_SHARE * self.sae.d_sae:
            return None
        return kernels.largest(x, self.sae.W_enc.t(), self.sae.b_enc, k, watched)

    def extra(self, seen: Seen, error: Tensor, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        del step
        if seen.estimate is None:
            return error.new_zeros(()), error.new_zeros(())
        aux = self.rules.aux_loss(seen.estimate, error)
        return cast(TopKConfig, self.sae.architecture).aux_coefficient * aux, aux


class PenalisedObjective(Objective):
    """Squared error and a sparsity penalty whose coefficient warms up."""

    def __init__(self, sae: SAE, config: Config, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        share = cast(JumpReLUConfig | ReLUConfig, sae.architecture).warmup_fraction
        self.warmup_steps = (rules.coefficient_warmup if share is None else share) * config.steps

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        """Sparsity of the batch, times its coefficient."""
        raise NotImplementedError

    def extra(self, seen: Seen, error: Tensor, step: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return ramp(step, self.warmup_steps) * self.penalty(seen), error.new_zeros(())

    def find_above(self, kernels: Kernels, x: Tensor, floors: Float[Tensor, " d_sae"]) -> Found | None:
        """The entries above `floors`, if they are few enough; some tokens show first if they are not."""
        z = x[:_PROBE] @ self.sae.W_enc
        above = (z if self.sae.b_enc is None else z + self.sae.b_enc) > floors
        if above.sum() > DENSE_SHARE * above.numel():
            return None
        most = int(2 * DENSE_SHARE * len(x) * self.sae.d_sae)
        return kernels.above(x, self.sae.W_enc.t(), self.sae.b_enc, floors, most)


class ReLUObjective(PenalisedObjective):
    """Squared error and L1 (definitions.md 1.5); unit decoder rows keep f from shrinking at no cost."""

    def activate(self, z: Tensor, form: Form) -> Tensor:
        del form
        return z.relu()

    def find(self, kernels: Kernels, x: Float[Tensor, "batch d_in"], watched: Tensor | None) -> Found | None:
        del watched
        return self.find_above(kernels, x, x.new_zeros(self.sae.d_sae))

    def penalty(self, seen: Seen) -> Float[Tensor, ""]:
        l1 = seen.f.sum() / seen.form.tokens
        return cast(ReLUConfig, self.sae.architecture).l1_coefficient * l1
