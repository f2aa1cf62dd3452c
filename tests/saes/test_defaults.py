"""The presets' starting points for JumpReLU, against the scale that pre-activations start with."""

import pytest
import torch

from sae_sweep.config import JumpReLUConfig
from sae_sweep.saes import build_sae
from sae_sweep.saes.build import RULES


def test_pre_activations_start_with_variance_two_over_the_expansion_factor():
    for expansion in (4, 16):
        sae = build_sae(JumpReLUConfig(), 128, expansion * 128, seed=0, numerics="modern")
        xn = sae.normalise(torch.randn(500, 128, generator=torch.Generator().manual_seed(0))).x
        assert sae.pre_activations(xn).var().item() == pytest.approx(2 / expansion, rel=0.05)


@pytest.mark.parametrize("numerics", ["modern", "study"])
def test_jumprelu_starts_sparse_but_alive(numerics):
    """At x16 a threshold of 1 is 2.8 deviations out: 0.23% of the features, 29 of 12,288."""
    sae = build_sae(JumpReLUConfig(), 128, 2048, seed=0, numerics=numerics)
    x = torch.randn(500, 128, generator=torch.Generator().manual_seed(0))
    density = (sae.encode(x) > 0).float().mean().item()
    assert 0.001 < density < 0.005


@pytest.mark.parametrize("numerics", ["modern", "study"])
def test_keys_override_the_preset(numerics):
    usual = build_sae(JumpReLUConfig(), 8, 16, seed=0, numerics=numerics)
    keyed = build_sae(JumpReLUConfig(initial_threshold=0.3), 8, 16, seed=0, numerics=numerics)
    assert (usual.threshold == RULES[numerics].initial_threshold).all()
    assert torch.allclose(keyed.threshold, torch.tensor(0.3))
