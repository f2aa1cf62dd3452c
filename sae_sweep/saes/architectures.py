"""The four architectures at inference."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, TopKConfig
from sae_sweep.saes.base import SAE


def keep_top(z: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch n"]:
    """Keep the k largest values along the last dimension, if above 0; zero elsewhere."""
    top = z.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())


class TopK(SAE):
    """f = ReLU(TopK_k(z)) (Gao et al. 2024, arXiv 2406.04093)."""

    saelens_architecture = "topk"

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return keep_top(z, cast(TopKConfig, self.architecture).k)


class BatchTopK(SAE):
    """At inference f = z·1(z > θ), with one θ for all features (Bussmann et al. 2024, arXiv 2412.06410).

    Training keeps the k·batch largest of a batch instead. `threshold` approximates that on average, so that
    a token's latents do not depend on the other tokens; it is 0 until the first step.
    """

    saelens_architecture = "jumprelu"
    threshold: Float[Tensor, ""]

    def __init__(self, architecture: ArchitectureConfig, d_in: int, d_sae: int, numerics: str) -> None:
        super().__init__(architecture, d_in, d_sae, numerics)
        self.register_buffer("threshold", torch.zeros(()))

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return z * (z > self.threshold)


class JumpReLU(SAE):
    """f = z·1(z > θ), with a trained θ >= 0 per feature (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Neither preset subtracts `b_dec` from the input, because the encoder has its own bias.
    """

    saelens_architecture = "jumprelu"
    subtracts_b_dec = False
    biased_in_study = True

    def __init__(self, architecture: ArchitectureConfig, d_in: int, d_sae: int, numerics: str) -> None:
        super().__init__(architecture, d_in, d_sae, numerics)
        self.threshold = nn.Parameter(torch.zeros(d_sae))

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return z * (z > self.threshold)


class ReLU(SAE):
    """f = ReLU(z) (Bricken et al. 2023)."""

    saelens_architecture = "standard"
    biased_in_study = True

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return z.relu()
