"""Builds an SAE's starting point from a seed and from data, and the objective that trains it."""

import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, JumpReLUConfig, RunConfig
from sae_sweep.ops import Kernels
from sae_sweep.saes.architectures import BatchTopK, JumpReLU, ReLU, TopK
from sae_sweep.saes.base import SAE
from sae_sweep.saes.batchtopk import BatchTopKObjective
from sae_sweep.saes.modern import ModernJumpReLU, ModernRules
from sae_sweep.saes.objectives import Objective, ReLUObjective, Rules, TopKObjective
from sae_sweep.saes.study import StudyJumpReLU, StudyRules

RULES: dict[str, Rules] = {"modern": ModernRules(), "study": StudyRules()}
"""The presets, by `config.numerics`."""


class Classes(NamedTuple):
    """The classes that compute and train an architecture."""

    sae: type[SAE]
    modern: type[Objective]
    """Objective with `numerics=modern`."""
    study: type[Objective]
    """Objective with `numerics=study`."""


CLASSES = {
    "topk": Classes(TopK, TopKObjective, TopKObjective),
    "batchtopk": Classes(BatchTopK, BatchTopKObjective, BatchTopKObjective),
    "jumprelu": Classes(JumpReLU, ModernJumpReLU, StudyJumpReLU),
    "relu": Classes(ReLU, ReLUObjective, ReLUObjective),
}
"""Classes by `ArchitectureConfig.kind`."""

_WEISZFELD_STEPS = 100
_WEISZFELD_TOLERANCE = 1e-5


def init_seed(config: RunConfig, run_id: str) -> int:
    """Seed of the initial dictionary: `config.seed`, or one from the run id if `init.shared` is false."""
    if config.init.shared:
        return config.seed
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:7])


def build_sae(
    architecture: ArchitectureConfig,
    d_in: int,
    d_sae: int,
    *,
    seed: int,
    numerics: str,
    normalisation: str = "layer_norm",
) -> SAE:
    """Build an untrained SAE; equal seeds and sizes give equal dictionaries."""
    sae = CLASSES[architecture.kind].sae(architecture, d_in, d_sae, numerics)
    sae.normalise_by(normalisation)
    with torch.no_grad():
        sae.W_enc.copy_(_initial_encoder(d_in, d_sae, seed))
        sae.W_dec.copy_(_decoder_of(sae.W_enc))
        if isinstance(architecture, JumpReLUConfig):
            default = RULES[numerics].initial_threshold
            sae.get_parameter("threshold").fill_(architecture.initial_threshold or default)
    return sae


def build_objective(sae: SAE, config: RunConfig, kernels: Kernels | None = None) -> Objective:
    """Build the training objective of `sae` under its preset, with `kernels` or by the dense formulas."""
    classes = CLASSES[sae.architecture.kind]
    objective = classes.study if sae.numerics == "study" else classes.modern
    return objective(sae, config, RULES[sae.numerics], kernels)


def initial_decoder(d_in: int, d_sae: int, seed: int) -> Float[Tensor, "d_sae d_in"]:
    """The unit decoder rows that every SAE of this size and seed starts from."""
    return _decoder_of(_initial_encoder(d_in, d_sae, seed))


def _initial_encoder(d_in: int, d_sae: int, seed: int) -> Float[Tensor, "d_in d_sae"]:
    # torch takes the last dimension, d_sae, as fan-in, so the weights have variance 2 / d_sae, and a
    # normalised input (norm² = d_in) gives pre-activations of variance 2 / expansion factor. The study's
    # trainer draws the same numbers, on the CPU and directly after seeding; nothing rescales them.
    generator = torch.Generator().manual_seed(seed)
    return nn.init.kaiming_uniform_(torch.empty(d_in, d_sae), generator=generator)


def _decoder_of(W_enc: Tensor) -> Tensor:
    rows = W_enc.t().contiguous()
    return rows / rows.norm(dim=-1, keepdim=True)


def initial_b_dec(xn: Float[Tensor, "batch d_in"], how: str) -> Float[Tensor, " d_in"]:
    """Initial decoder bias by method `how` (`init.b_dec`), from the first batch in SAE-input space."""
    starts = {"zero": lambda x: x.new_zeros(x.shape[-1]), "mean": _mean, "geometric_median": geometric_median}
    return starts[how](xn)


def _mean(xn: Tensor) -> Tensor:
    return xn.mean(dim=0)


def geometric_median(points: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The point with the least total distance to `points`, by Weiszfeld's iteration (definitions.md 1.1)."""
    guess = points.mean(dim=0)
    for _ in range(_WEISZFELD_STEPS):
        # a guess equal to a point has distance 0 to it: the minimum keeps that weight finite
        weights = 1 / (points - guess).norm(dim=-1).clamp(min=1e-12)
        moved = (weights / weights.sum()) @ points
        if (moved - guess).norm() < _WEISZFELD_TOLERANCE:
            return moved
        guess = moved
    return guess
