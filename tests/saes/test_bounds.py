"""Bounds of numeric keys as training needs them: at each bound a step is computed, and finite."""

import dataclasses
from typing import Any

import pytest
import torch

from sae_sweep.config import (
    ARCHITECTURES,
    ConfigError,
    EmbeddedDataset,
    OptimizerConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.config.checks import numeric_fields
from sae_sweep.saes import Learner, build_sae

RUN = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset(), batch=16, tokens=32)
D_IN, D_SAE = 8, 64


def at_bounds(config: Any) -> list[tuple[str, float]]:
    """Each numeric key of a config at its least and at its greatest value."""
    return [
        (name, field.kind(end.value))
        for name, field in numeric_fields(type(config)).items()
        for end in field.bounds
    ]


def train(run: RunConfig) -> list[torch.Tensor]:
    """The parameters after all steps of a run on random numbers."""
    sae = build_sae(run.architecture, D_IN, D_SAE, seed=run.seed, numerics=run.numerics)
    learner = Learner(sae, run, "cpu")
    x = torch.randn(run.batch, D_IN, generator=torch.Generator().manual_seed(0))
    for _ in range(run.steps):
        learner.step(x)
    return [parameter.detach() for parameter in sae.parameters()]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("name", "value"), at_bounds(OptimizerConfig()))
def test_an_optimiser_at_its_bounds_computes_a_step(backend: str, name: str, value: float) -> None:
    optimizer = OptimizerConfig(**{"warmup_fraction": 0, "decay_fraction": 0, name: value})
    weights = train(dataclasses.replace(RUN, backend=backend, optimizer=optimizer))
    if value <= 1:
        assert all(torch.isfinite(parameter).all() for parameter in weights)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("numerics", ["modern", "study"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_at_its_bounds_computes_a_step(kind: str, numerics: str, backend: str) -> None:
    for name, value in at_bounds(ARCHITECTURES[kind]()):
        value = min(value, D_SAE) if name == "k" else value
        architecture = ARCHITECTURES[kind](**{name: value})
        run = dataclasses.replace(RUN, numerics=numerics, backend=backend, architecture=architecture)
        weights = train(run)
        if value <= 1 and name != "bandwidth":
            assert all(torch.isfinite(parameter).all() for parameter in weights), (name, value)


def test_seeds_above_32_bits_would_repeat_seeds_below() -> None:
    """Why the bound of seeds is what it is."""
    one, other = (build_sae(TopKConfig(), 8, 16, seed=seed, numerics="modern") for seed in (49, 49 + 2**32))
    assert torch.equal(one.W_enc, other.W_enc)
    with pytest.raises(ConfigError, match="seed=4294967345: must be at most 4294967295"):
        dataclasses.replace(RUN, seed=49 + 2**32)
