"""What every SAE here has in common: its parameters, the normalisation of its input, and inference."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig

NORMALISATION_EPS = 1e-5
"""Added to the standard deviation of a token (definitions.md 1.7; SAELens `layer_norm` uses the same)."""


class Normalised(NamedTuple):
    """Activations in SAE-input space, with what it takes to go back."""

    x: Float[Tensor, "*batch d_in"]
    """Zero mean and about unit variance over d_in, for every token."""
    mean: Float[Tensor, "*batch 1"]
    """Mean of the raw token over d_in."""
    std: Float[Tensor, "*batch 1"]
    """Unbiased standard deviation of the raw token over d_in, without the epsilon."""

    def undo(self, y: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Map `y`, a reconstruction of `x`, back to the raw residual stream."""
        return y * self.std + self.mean


class SAE(nn.Module):
    """A sparse autoencoder for inference; how one is trained is the business of `Learner`.

    Parameters are `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_in] (a row is a feature), `b_dec` [d_in], and
    `b_enc` [d_sae] or None. All start at zero: `build_sae` or `load_sae` fills them.
    """

    subtracts_b_dec: ClassVar[bool] = True
    """Whether `b_dec` is taken off the input before encoding."""
    biased_in_study: ClassVar[bool] = False
    """Whether the study's trainer uses an encoder bias; modern numerics always does."""

    def __init__(self, architecture: ArchitectureConfig, d_in: int, d_sae: int, numerics: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.d_in = d_in
        self.d_sae = d_sae
        self.numerics = numerics
        # in memory a row is a feature here too: kernels read and update whole features
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).t())
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        biased = numerics == "modern" or self.biased_in_study
        self.b_enc = nn.Parameter(torch.zeros(d_sae)) if biased else None

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Turn pre-activations into latents, the way inference does."""
        raise NotImplementedError

    def normalise(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        """Raw residuals to SAE-input space: (x - mean) / (std + 1e-5) for each token (DESIGN.md §5)."""
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        std = centred.std(dim=-1, keepdim=True)
        return Normalised(centred / (std + NORMALISATION_EPS), mean, std)

    def pre_activations(self, xn: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The encoder's linear part, on an input in SAE-input space."""
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
        self, f: Float[Tensor, "*batch d_sae"], normalised: Normalised
    ) -> Float[Tensor, "*batch d_in"]:
        """Raw reconstruction from latents and the normalisation of the tokens they came from."""
        return normalised.undo(self.decode_normalised(f))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Raw residuals in, raw reconstruction out."""
        normalised = self.normalise(x)
        return self.decode(self.encode_normalised(normalised.x), normalised)
