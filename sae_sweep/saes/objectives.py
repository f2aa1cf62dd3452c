"""Training objectives of the architectures; `Rules` defines where the presets differ.

Every loss is in SAE-input space and its squared error is a mean over d_in, so failing to reconstruct an
input of unit variance costs about 1 at every width (DESIGN.md §5).

Each objective computes a batch in one of two ways, with equal results up to rounding: densely, by the
formulas as written, or with kernels that find the active latents and compute only those (`sae_sweep.ops`).
"""

from typing import ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_sweep import ops
from sae_sweep.config import JumpReLUConfig, ReLUConfig, RunConfig, TopKConfig
from sae_sweep.ops import Encoded, Kernels, SparseMatrix, SparsePattern
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE
from sae_sweep.saes.layouts import DenseLayout, Layout, SparseLayout
from sae_sweep.saes.optimizer import ramp

MAX_DENSITY = 1 / 8
"""Above this fraction of active latents, sparse products cost more than dense ones."""
MAX_AUX_DENSITY = 3 / 8
"""The same for AuxK's fraction of the dead features, whose dense products are small."""
_PROBE_TOKENS = 32
"""Tokens whose density is measured before a whole batch is searched."""


class ForwardOutput(NamedTuple):
    """One batch's forward pass in training."""

    layout: Layout
    """The layout of z and f."""
    z: Tensor
    """Pre-activations: all, or those of the active latents and of those near a threshold."""
    f: Tensor
    """Latents (BatchTopK: selected over the whole batch)."""
    reconstruction: Float[Tensor, "batch d_in"]
    """Without `b_dec`."""
    dead: Bool[Tensor, " d_sae"]
    """Features that were silent for `dead_after` tokens, this batch included."""
    aux_reconstruction: Float[Tensor, "batch d_in"] | None
    """AuxK's reconstruction of the error from dead features; None without AuxK or dead features."""


class Losses(NamedTuple):
    """One batch's loss and its parts."""

    loss: Float[Tensor, ""]
    """What is minimised: mse, or its tilted mean over tokens, + coefficient x (AuxK or sparsity)."""
    mse: Float[Tensor, ""]
    """Squared error, mean over batch and d_in."""
    aux: Float[Tensor, ""]
    """AuxK before its coefficient; 0 without AuxK or dead features."""
    output: ForwardOutput


class Rules:
    """The rules of one preset: all in which `modern` and `study` differ, except JumpReLU's gradients."""

    initial_threshold: ClassVar[float]
    """JumpReLU's initial threshold, for inputs of unit variance."""
    bandwidth: ClassVar[float]
    """Bandwidth of JumpReLU's straight-through kernel, in the same units."""
    coefficient_warmup: ClassVar[float]
    """Fraction of the steps over which the coefficients of L0 and L1 rise to their value."""
    unit_rows: ClassVar[Literal["before", "after"]]
    """Whether decoder rows are set to norm 1 before or after Adam's step."""

    def dead_after(self, config: RunConfig) -> int:
        """Tokens of silence that make a feature dead."""
        raise NotImplementedError

    def k_aux(self, d_in: int) -> int:
        """Dead features that AuxK uses per token, if there are as many."""
        raise NotImplementedError

    def aux_latents(self, z: Tensor) -> Tensor:
        """AuxK's latents from z, the highest pre-activations of dead features."""
        raise NotImplementedError

    def aux_loss(
        self, reconstruction: Float[Tensor, "batch d_in"], error: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, ""]:
        """The loss that revives dead features, from their reconstruction of the SAE's error x - x̂."""
        raise NotImplementedError


class Objective(nn.Module):
    """An SAE with its loss and all state that training carries from step to step, except Adam's moments."""

    silent: Int[Tensor, " d_sae"]
    """Tokens since each feature last fired."""
    has_aux: ClassVar[bool] = False
    """Whether AuxK revives dead features."""

    def __init__(self, sae: SAE, config: RunConfig, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.sae = sae
        self.rules = rules
        self.dead_after = rules.dead_after(config)
        self._max_k_aux = rules.k_aux(sae.d_in)
        self._kernels = kernels
        self._tilt = config.optimizer.tilt
        self.register_buffer("silent", torch.zeros(sae.d_sae, dtype=torch.int64))

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        """Latents in training, from all pre-activations or from those that `find` returned."""
        raise NotImplementedError

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        """Entries that can have a non-zero latent or gradient; None if there are too many.

        Includes estimates for `dead_candidates`, if the kernels leave them.
        """
        raise NotImplementedError

    def extra_loss(
        self, output: ForwardOutput, error: Tensor, step: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss beside the squared error, weighted; and AuxK unweighted."""
        raise NotImplementedError

    def forward(self, xn: Float[Tensor, "batch d_in"], step: int) -> Losses:
        """Losses of a normalised batch at step `step` (from 0); counts silence."""
        centred = xn - self.sae.b_dec
        x = centred if self.sae.subtracts_b_dec else xn
        output = None if self._kernels is None else self._forward_sparse(self._kernels, x)
        if output is None:
            output = self._forward_dense(x)
        error = centred - output.reconstruction
        mse = ops.mean_square(error)
        main = mse if self._tilt is None else ops.tilted_mean(error.square().mean(dim=1), self._tilt)
        weighted, aux = self.extra_loss(output, error, step)
        return Losses(main + weighted, mse, aux, output)

    def _forward_dense(self, x: Tensor) -> ForwardOutput:
        """By the formulas; the gradient to `b_dec` flows through x."""
        z = self._encode_linear(x)
        layout = DenseLayout(len(x))
        f = self.activate(z, layout)
        dead, dead_features = self._count_silence(layout.fired(f.detach()), len(x))
        aux = None if dead_features is None else self._aux_dense(z[:, dead_features], dead_features)
        return ForwardOutput(layout, z, f, f @ self.sae.W_dec, dead, aux)

    def _forward_sparse(self, kernels: Kernels, x: Tensor) -> ForwardOutput | None:
        """With the kernels; None if the batch is too dense for them."""
        sae, constant = self.sae, x.detach()
        with torch.no_grad():
            candidates = self._dead_candidates(kernels, len(x))
            encoded = self.find(kernels, constant, candidates)
            if encoded is None:
                return None
            layout = SparseLayout(SparsePattern(kernels, encoded.csr))
            fired = layout.fired(self.activate(encoded.values, layout))
        dead, dead_features = self._count_silence(fired, len(x))
        found = [(layout.pattern, encoded.values)]
        aux_is_dense = dead_features is not None and not self._aux_is_sparse(dead_features)
        if dead_features is not None and not aux_is_dense:
            estimates = None
            if candidates is not None and encoded.estimates is not None:
                estimates = encoded.estimates.keep(dead[candidates])
            found.append(self._encode_dead(kernels, constant, dead_features, estimates))
        b_dec = sae.b_dec if sae.subtracts_b_dec else None
        z, *z_dead = ops.pre_activations(constant, sae.W_enc, sae.b_enc, b_dec, found)
        f = self.activate(z, layout)
        values = [f, *(self.rules.aux_latents(of_dead) for of_dead in z_dead)]
        patterns = [pattern for pattern, _ in found]
        reconstruction, *aux = ops.decode(list(zip(patterns, values, strict=True)), sae.W_dec)
        if dead_features is not None and aux_is_dense:
            aux = [self._aux_dense(self._encode_linear(x, dead_features), dead_features)]
        return ForwardOutput(layout, z, f, reconstruction, dead, aux[0] if aux else None)

    def _encode_linear(self, x: Tensor, features: Tensor | None = None) -> Float[Tensor, "batch features"]:
        """The encoder's linear part for all features or some; x has `b_dec` already subtracted."""
        W: Tensor = self.sae.W_enc
        b: Tensor | None = self.sae.b_enc
        if features is not None:
            W, b = W.t()[features].t(), None if b is None else b[features]
        return x @ W if b is None else x @ W + b

    def _dead_candidates(self, kernels: Kernels, tokens: int) -> Tensor | None:
        """Features that are dead unless this batch activates them; None if AuxK has no use for estimates."""
        if not (self.has_aux and kernels.leaves_estimates):
            return None
        candidates = (self.silent + tokens >= self.dead_after).nonzero().squeeze(-1)
        return candidates if self._aux_is_sparse(candidates) else None

    def _aux_is_sparse(self, dead: Tensor) -> bool:
        """Whether AuxK uses so few of the dead features that sparse products cost less than dense ones."""
        return self._k_aux(dead) <= MAX_AUX_DENSITY * len(dead)

    def _k_aux(self, dead: Tensor) -> int:
        return min(self._max_k_aux, len(dead))

    def _aux_dense(self, z: Float[Tensor, "batch dead"], dead: Tensor) -> Float[Tensor, "batch d_in"]:
        """AuxK's reconstruction, from the dead features with the largest pre-activations of either sign."""
        k = self._k_aux(dead)
        if k == len(dead):
            return self.rules.aux_latents(z) @ self.sae.W_dec[dead]
        if self._kernels is None:
            columns = z.topk(k, dim=-1, sorted=False).indices
        else:
            columns = self._kernels.topk(z.detach(), k)[0].long()
        kept = self.rules.aux_latents(z.gather(-1, columns))
        return torch.zeros_like(z).scatter(-1, columns, kept) @ self.sae.W_dec[dead]

    @torch.no_grad()
    def _encode_dead(
        self, kernels: Kernels, x: Tensor, dead: Tensor, estimates: ops.Estimates | None
    ) -> SparseMatrix:
        """The same dead features, as a sparse matrix over tokens and `dead`."""
        W, b = self.sae.W_enc.t().index_select(0, dead), self.sae.b_enc
        encoded = kernels.encode_dead_topk(x, W, None if b is None else b[dead], self._k_aux(dead), estimates)
        return SparsePattern(kernels, encoded.csr, dead), encoded.values

    @torch.no_grad()
    def _count_silence(self, fired: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        """The dead features as a mask; and as indices, if AuxK has any to revive.

        AuxK gathers the dead features, at the price of one wait for the device, because they are few:
        computing all d_sae again would cost as much as the main reconstruction.
        """
        self.silent = torch.where(fired, 0, self.silent + tokens)
        dead = self.silent >= self.dead_after
        features = dead.nonzero().squeeze(-1) if self.has_aux else None
        return dead, features if features is not None and len(features) else None

    def inputs_scaled(self) -> None:
        """Runs before the first step if that has set the SAE's `input_scale`."""

    def after_step(self) -> None:
        """Runs after Adam's step."""

    def extra_metrics(self, output: ForwardOutput) -> dict[str, Tensor]:
        """Metrics that only this architecture has."""
        del output
        return {}


class TopKObjective(Objective):
    """Squared error and AuxK (definitions.md 1.1)."""

    has_aux = True

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        if isinstance(layout, SparseLayout):
            return z.relu()
        return keep_top(z, cast(TopKConfig, self.sae.architecture).k)

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        k = cast(TopKConfig, self.sae.architecture).k
        if k > MAX_DENSITY * self.sae.d_sae:
            return None
        return kernels.encode_topk(x, self.sae.W_enc.t(), self.sae.b_enc, k, dead_candidates)

    def extra_loss(
        self, output: ForwardOutput, error: Tensor, step: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        del step
        if output.aux_reconstruction is None:
            return error.new_zeros(()), error.new_zeros(())
        aux = self.rules.aux_loss(output.aux_reconstruction, error)
        return cast(TopKConfig, self.sae.architecture).aux_coefficient * aux, aux


class PenalisedObjective(Objective):
    """Squared error and a sparsity penalty whose coefficient warms up."""

    def __init__(self, sae: SAE, config: RunConfig, rules: Rules, kernels: Kernels | None = None) -> None:
        super().__init__(sae, config, rules, kernels)
        fraction = cast(JumpReLUConfig | ReLUConfig, sae.architecture).warmup_fraction
        self.warmup_steps = (rules.coefficient_warmup if fraction is None else fraction) * config.steps

    def penalty(self, output: ForwardOutput) -> Float[Tensor, ""]:
        """The batch's sparsity loss, times its coefficient."""
        raise NotImplementedError

    def extra_loss(
        self, output: ForwardOutput, error: Tensor, step: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return ramp(step, self.warmup_steps) * self.penalty(output), error.new_zeros(())

    def find_above(self, kernels: Kernels, x: Tensor, floors: Float[Tensor, " d_sae"]) -> Encoded | None:
        """All above `floors`; None if there are too many, which a few tokens usually show."""
        above = self._encode_linear(x[:_PROBE_TOKENS]) > floors
        if above.sum() > MAX_DENSITY * above.numel():
            return None
        max_nnz = int(2 * MAX_DENSITY * len(x) * self.sae.d_sae)
        return kernels.encode_above(x, self.sae.W_enc.t(), self.sae.b_enc, floors, max_nnz)


class ReLUObjective(PenalisedObjective):
    """Squared error and L1 (definitions.md 1.5); unit decoder rows keep f from shrinking at no cost."""

    def activate(self, z: Tensor, layout: Layout) -> Tensor:
        del layout
        return z.relu()

    def find(
        self, kernels: Kernels, x: Float[Tensor, "batch d_in"], dead_candidates: Tensor | None
    ) -> Encoded | None:
        del dead_candidates
        return self.find_above(kernels, x, x.new_zeros(self.sae.d_sae))

    def penalty(self, output: ForwardOutput) -> Float[Tensor, ""]:
        l1 = output.f.sum() / output.layout.tokens
        return cast(ReLUConfig, self.sae.architecture).l1_coefficient * l1
