"""The base class of all SAEs: parameters, input normalisation and inference."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, SaeSweepError

NORMALISATION_EPS = 1e-5
"""Added to a token's standard deviation (definitions.md 1.7; the same as in SAELens's `layer_norm`)."""

AVERAGE = "expected_average_only_in"
"""The normalisation that multiplies all tokens by one factor."""
IN_ITS_OWN_SPACE = ("none", AVERAGE)
"""Normalisations that take nothing from a token, so that latents alone give its reconstruction."""
_IN_UNITS_OF_THE_INPUT = ("b_dec", "b_enc", "threshold")
"""Tensors that are k times as large where all inputs and latents are."""


class Normalised(NamedTuple):
    """Activations in SAE-input space, with the statistics that undo the normalisation."""

    x: Float[Tensor, "*batch d_in"]
    """Normalised tokens; for layer_norm of mean 0 and variance close to 1 over d_in."""
    mean: Float[Tensor, "*batch 1"]
    """What was subtracted from each raw token: its mean over d_in, or 0."""
    std: Float[Tensor, "*batch 1"]
    """What each raw token was divided by; for layer_norm its unbiased standard deviation over d_in, without
    the epsilon."""

    def undo(self, y: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Map `y`, a reconstruction of `x`, back to the raw residual stream."""
        return y * self.std + self.mean


class SAE(nn.Module):
    """A sparse autoencoder at inference; `Learner` trains one.

    Parameters are `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_in] (a row is a feature), `b_dec` [d_in], and
    `b_enc` [d_sae] or None. All start at zero: `build_sae` or `load_sae` fills them.
    """

    subtracts_b_dec: ClassVar[bool] = True
    """Whether `b_dec` is subtracted from the input before encoding."""
    biased_in_study: ClassVar[bool] = False
    """Whether the encoder has a bias with `numerics=study`; with modern it always has."""
    saelens_architecture: ClassVar[str | None] = None
    """SAELens's name of what the SAE is at inference; None: it is not written in SAELens's layout."""
    normalisation: str = "layer_norm"
    """How `normalise` maps a token: one of `NORMALISATIONS`."""
    input_scale: Float[Tensor, ""] | None
    """Factor of expected_average_only_in, 0 before the first batch gives it; None for the others."""

    def __init__(self, architecture: ArchitectureConfig, d_in: int, d_sae: int, numerics: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.d_in = d_in
        self.d_sae = d_sae
        self.numerics = numerics
        # in memory, rows of W_enc are features too: kernels read and update whole features
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).t())
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        biased = numerics == "modern" or self.biased_in_study
        self.b_enc = nn.Parameter(torch.zeros(d_sae)) if biased else None
        self.register_buffer("input_scale", None)

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents at inference, from pre-activations."""
        raise NotImplementedError

    def normalise(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        """Map raw residuals to SAE-input space: for layer_norm, (x - mean) / (std + 1e-5) per token."""
        how, zero = self.normalisation, x.new_zeros((*x.shape[:-1], 1))
        mean = x.mean(dim=-1, keepdim=True) if how in ("layer_norm", "centred") else zero
        centred = x - mean
        if how == "layer_norm":
            std = centred.std(dim=-1, keepdim=True)
            return Normalised(centred / (std + NORMALISATION_EPS), mean, std)
        if how == "constant_norm_rescale":
            norm = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return Normalised(x / norm.clamp(min=torch.finfo(x.dtype).tiny), zero, norm)
        if self.input_scale is not None:
            scale = torch.where(self.input_scale > 0, self.input_scale, 1)
            return Normalised(x * scale, zero, zero + 1 / scale)
        return Normalised(centred, mean, zero + 1)

    def normalise_by(self, normalisation: str, scale: float = 0.0) -> None:
        """Choose how inputs are normalised, for an SAE that is to be trained.

        Args:
            normalisation: one of `NORMALISATIONS`.
            scale: for expected_average_only_in, the factor in whose units the weights are; 0: that which
                the first batch will give.
        """
        self.normalisation = normalisation
        self.input_scale = torch.tensor(scale) if normalisation == AVERAGE else None

    @torch.no_grad()
    def scale_inputs(self, scale: float | Tensor) -> None:
        """Give inputs another factor; an SAE that had one computes the same, in the units of the new one."""
        if self.input_scale is None:
            raise SaeSweepError(f"normalisation={self.normalisation} has no factor")
        ratio = torch.where(self.input_scale > 0, scale / self.input_scale, 1)
        for name, value in self.state_dict().items():
            if name in _IN_UNITS_OF_THE_INPUT:
                value.mul_(ratio)
        self.input_scale.fill_(scale)

    def fold_input_scale(self) -> None:
        """Put the factor of expected_average_only_in into the biases and thresholds, for good.

        The SAE then reads raw residuals (normalisation none), and its latents are in their units.
        """
        if self.input_scale is not None:
            self.scale_inputs(1.0)
            self.input_scale, self.normalisation = None, "none"

    def pre_activations(self, xn: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations of an input in SAE-input space."""
        z = (xn - self.b_dec if self.subtracts_b_dec else xn) @ self.W_enc
        return z if self.b_enc is None else z + self.b_enc

    def encode_normalised(self, xn: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of an input that is already in SAE-input space."""
        return self.activate(self.pre_activations(xn))

    def decode_normalised(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction in SAE-input space."""
        return f @ self.W_dec + self.b_dec

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of raw residuals."""
        return self.encode_normalised(self.normalise(x).x)

    def decode(
        self, f: Float[Tensor, "*batch d_sae"], normalised: Normalised | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Raw reconstruction from latents and the normalisation of their tokens.

        Args:
            f: the latents.
            normalised: `normalise(x)` of the tokens; not needed by an SAE whose inputs are as they are.

        Raises:
            SaeSweepError: if the SAE normalises each token, and latents alone cannot say by what.
        """
        if normalised is not None:
            return normalised.undo(self.decode_normalised(f))
        if self.normalisation in IN_ITS_OWN_SPACE:
            return self.normalise(f.new_zeros(1, self.d_in)).undo(self.decode_normalised(f))
        raise SaeSweepError(
            f"this SAE normalises each token ({self.normalisation}), and latents do not say by what: sae(x) "
            "reconstructs x, sae.decode(f, sae.normalise(x)) does so from other latents f of x, and "
            "sae.decode_normalised(f) stays in the space of normalised tokens"
        )

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Raw reconstruction of raw residuals."""
        normalised = self.normalise(x)
        return self.decode(self.encode_normalised(normalised.x), normalised)
