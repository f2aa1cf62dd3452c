"""Inference: shapes, sparsity, normalisation; and the initial SAE."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import InitConfig, JumpReLUConfig
from sae_sweep.saes import build_sae, init_seed, initial_decoder
from sae_sweep.saes.build import RULES, geometric_median
from tests.saes.helpers import D_IN, D_SAE, KINDS, NUMERICS, architecture, config, fresh_sae, sparse_batch

kinds, presets = st.sampled_from(KINDS), st.sampled_from(NUMERICS)


@settings(max_examples=60, deadline=None)
@given(kinds, presets, st.lists(st.integers(1, 5), max_size=3), st.integers(0, 2**31))
def test_shapes_and_signs(kind, numerics, batch_shape, seed):
    sae = fresh_sae(architecture(kind), numerics, seed=seed % 97)
    x = torch.randn(*batch_shape, D_IN, generator=torch.Generator().manual_seed(seed)) * 5 + 1
    f = sae.encode(x)
    assert f.shape == (*batch_shape, D_SAE)
    assert (f >= 0).all()
    assert sae(x).shape == x.shape
    assert torch.equal(sae.decode(f, sae.normalise(x)), sae(x))
    assert torch.equal(sae.encode_normalised(sae.normalise(x).x), f)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, D_SAE), presets, st.integers(0, 2**31))
def test_topk_keeps_the_k_largest_that_are_positive(k, numerics, seed):
    sae = fresh_sae(architecture("topk", k=k), numerics)
    xn = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(seed))
    z, f = sae.pre_activations(xn), sae.encode_normalised(xn)
    for row_z, row_f in zip(z, f, strict=True):
        kept = row_f.nonzero().squeeze(-1)
        assert len(kept) == min(k, int((row_z > 0).sum()))
        assert torch.equal(row_f[kept], row_z[kept])
        assert row_z[kept].min() >= row_z[row_f == 0].max() if len(kept) < D_SAE else True


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_thresholds_are_strict(kind):
    sae = fresh_sae(architecture(kind), "modern")
    with torch.no_grad():
        sae.threshold.fill_(0.5)
    z = torch.tensor([0.5, 0.5000001, 0.4999999, -1.0, 2.0])
    z = torch.nn.functional.pad(z, (0, D_SAE - 5))
    assert sae.activate(z).nonzero().squeeze(-1).tolist() == [1, 4]


def test_normalisation_is_per_token_unbiased_and_undone():
    sae = fresh_sae(architecture("topk"), "modern")
    x = sparse_batch(0)
    normalised = sae.normalise(x)
    expected = torch.stack([(row - row.mean()) / (row.var(unbiased=True).sqrt() + 1e-5) for row in x])
    torch.testing.assert_close(normalised.x, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalised.undo(normalised.x), x, rtol=1e-4, atol=1e-4)


def test_a_constant_token_is_finite():
    sae = fresh_sae(architecture("topk"), "modern")
    assert sae(torch.full((2, D_IN), 3.0)).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "numerics", "biased", "subtracts"),
    [
        ("topk", "modern", True, True),
        ("topk", "study", False, True),
        ("batchtopk", "modern", True, True),
        ("batchtopk", "study", False, True),
        ("jumprelu", "modern", True, False),
        ("jumprelu", "study", True, False),
        ("relu", "modern", True, True),
        ("relu", "study", True, True),
    ],
)
def test_biases_of_each_preset(kind, numerics, biased, subtracts):
    sae = fresh_sae(architecture(kind), numerics)
    assert (sae.b_enc is not None) == biased
    xn = torch.randn(3, D_IN)
    before = sae.pre_activations(xn)
    with torch.no_grad():
        sae.b_dec.fill_(1.0)
    assert torch.equal(sae.pre_activations(xn), before) != subtracts


def test_equal_seeds_share_their_start_and_others_do_not():
    starts = [fresh_sae(architecture(kind), numerics) for kind in KINDS for numerics in NUMERICS]
    assert all(torch.equal(sae.W_enc, starts[0].W_enc) for sae in starts)
    assert all(torch.equal(sae.W_dec, starts[0].W_dec) for sae in starts)
    assert torch.equal(starts[0].W_dec, initial_decoder(D_IN, D_SAE, 3))
    other = build_sae(architecture("topk"), D_IN, D_SAE, seed=4, numerics="modern")
    assert not torch.equal(other.W_enc, starts[0].W_enc)


def test_the_start_is_the_one_of_the_study():
    """DESIGN.md §5: kaiming_uniform_(empty(d_in, d_sae)), first after seeding; rows of its transpose."""
    torch.manual_seed(49)
    W_enc = torch.nn.init.kaiming_uniform_(torch.empty(24, 96))
    sae = build_sae(architecture("topk"), 24, 96, seed=49, numerics="study")
    assert torch.equal(sae.W_enc, W_enc)
    assert W_enc.abs().max() <= (6 / 96) ** 0.5
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96))
    torch.testing.assert_close(sae.W_dec, torch.nn.functional.normalize(W_enc.T, dim=-1))
    assert not any(sae.get_parameter(name).any() for name in ("b_dec",))


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fresh_sae(architecture("topk"), "modern")
    assert torch.equal(torch.get_rng_state(), before)


def test_init_seed():
    shared = config(architecture("topk"), seed=42)
    own = config(architecture("topk"), seed=42, init=InitConfig(shared=False))
    assert init_seed(shared, "a") == init_seed(shared, "b") == 42
    assert init_seed(own, "a") == init_seed(own, "a") != init_seed(own, "b")
    build_sae(architecture("topk"), 4, 8, seed=init_seed(own, "a"), numerics="modern")


def test_geometric_median_resists_outliers_and_is_least():
    cloud = torch.randn(101, 3, generator=torch.Generator().manual_seed(0))
    spoilt = torch.cat([cloud, torch.full((20, 3), 1000.0)])
    median = geometric_median(spoilt)
    assert median.norm() < 1 < spoilt.mean(dim=0).norm()

    def cost(p):
        return (spoilt - p).norm(dim=-1).double().sum()

    for shift in 0.05 * torch.eye(3):
        assert cost(median) < cost(median + shift)
        assert cost(median) < cost(median - shift)


def test_geometric_median_of_points_that_coincide():
    assert torch.equal(geometric_median(torch.ones(5, 2)), torch.ones(2))


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
    default = build_sae(JumpReLUConfig(), 8, 16, seed=0, numerics=numerics)
    keyed = build_sae(JumpReLUConfig(initial_threshold=0.3), 8, 16, seed=0, numerics=numerics)
    assert (default.threshold == RULES[numerics].initial_threshold).all()
    assert torch.allclose(keyed.threshold, torch.tensor(0.3))
