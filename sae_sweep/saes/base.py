"""The base class of all SAEs: parameters, input normalisation and inference."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, SaeSweepError

NORMALISATION_EPS = 1e-5
"""Added to a token's standard deviation (definitions.md 1.7; the same as in SAELens's `layer_norm`)."""

IN_ITS_OWN_SPACE = ("none", "expected_average_only_in")
"""Normalisations that leave a token as it is, so that latents alone give its reconstruction."""


class Normalised(NamedTuple):
    """Activations in SAE-input space, with the statistics that undo the normalisation."""

    x: Float[Tensor, "*batch d_in"]
    """Normalised tokens: mean 0 and variance close to 1 over d_in."""
    mean: Float[Tensor, "*batch 1"]
    """Mean of each raw token over d_in."""
    std: Float[Tensor, "*batch 1"]
    """Unbiased standard deviation of each raw token over d_in, without the epsilon."""

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
    """How `normalise` maps a token, by SAELens's name."""

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

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents at inference, from pre-activations."""
        raise NotImplementedError

    def normalise(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        """Map raw residuals to SAE-input space: (x - mean) / (std + 1e-5) per token."""
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        std = centred.std(dim=-1, keepdim=True)
        return Normalised(centred / (std + NORMALISATION_EPS), mean, std)

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
            return self.decode_normalised(f)
        raise SaeSweepError(
            f"this SAE normalises each token ({self.normalisation}), and latents do not say by what: sae(x) "
            "reconstructs x, sae.decode(f, sae.normalise(x)) does so from other latents f of x, and "
            "sae.decode_normalised(f) stays in the space of normalised tokens"
        )

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Raw reconstruction of raw residuals."""
        normalised = self.normalise(x)
        return self.decode(self.encode_normalised(normalised.x), normalised)
