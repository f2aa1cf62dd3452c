"""Small SAEs, configs and data for the tests of saes/."""

import math
from typing import Any

import torch
from torch import Tensor

from sae_sweep.config import ARCHITECTURES, ArchitectureConfig, OptimizerConfig, RunConfig
from sae_sweep.saes import SAE, Learner, build_sae

NUMERICS = ("modern", "study")
KINDS = tuple(ARCHITECTURES)
D_IN, D_SAE, BATCH = 16, 64, 128


def architecture(kind: str, **changes: Any) -> ArchitectureConfig:
    """A config whose sparsity fits the small SAEs; keys without a small value keep their default."""
    small = {"k": 4, "l0_coefficient": 0.02, "l1_coefficient": 0.05}
    cls = ARCHITECTURES[kind]
    return cls(**{key: small[key] for key in cls.uses if key in small} | changes)


STUDY_OPTIMIZER = OptimizerConfig(warmup_fraction=0.0, decay_fraction=0.0, clip_norm=1e5)
"""What `conf/numerics/study.yaml` sets."""


def config(
    arch: ArchitectureConfig, numerics: str = "modern", *, steps: int = 50, **changes: Any
) -> RunConfig:
    values: dict[str, Any] = {"batch": BATCH, "optimizer": OptimizerConfig(lr=3e-3)}
    if numerics == "study":
        values["optimizer"] = STUDY_OPTIMIZER
    values |= changes
    tokens = steps * values["batch"]
    return RunConfig(architecture=arch, dictionary=D_SAE // D_IN, numerics=numerics, tokens=tokens, **values)


def learner(kind: str, numerics: str = "modern", *, seed: int = 3, **changes: Any) -> Learner:
    arch = changes.pop("arch", None) or architecture(kind)
    return Learner(fresh_sae(arch, numerics, seed=seed), config(arch, numerics, **changes), "cpu")


def fresh_sae(arch: ArchitectureConfig, numerics: str, *, seed: int = 3, d_sae: int = D_SAE) -> SAE:
    return build_sae(arch, D_IN, d_sae, seed=seed, numerics=numerics)


def sparse_batch(step: int, *, n: int = BATCH, d_in: int = D_IN) -> Tensor:
    """Raw activations: sparse sums of fixed directions with an offset, each token on its own scale."""
    directions = torch.randn(2 * d_in, d_in, generator=torch.Generator().manual_seed(0)) / math.sqrt(d_in)
    draw = torch.Generator().manual_seed(1000 + step)
    active = torch.rand(n, 2 * d_in, generator=draw) < 0.1
    strength = active * torch.rand(n, 2 * d_in, generator=draw).add(0.5)
    scale = torch.rand(n, 1, generator=draw) * 20 + 1
    noise = 0.05 * torch.randn(n, d_in, generator=draw)
    return scale * (strength @ directions + noise + 0.3 * directions[0]) + 2.0
