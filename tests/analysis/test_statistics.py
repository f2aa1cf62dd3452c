import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis.statistics import ACTIVATION_EDGES, FeatureStatistics, ReconstructionError

CPU = torch.device("cpu")


def accumulate(f, batches=3):
    features = FeatureStatistics(f.shape[1], CPU)
    for part in f.chunk(batches):
        features.update(part)
    return features


def test_explained_variance_is_pooled_over_batches_of_different_means():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 5, generator=generator)
    x[30:60] += 7
    x_hat, zero_hat = x + 0.3 * torch.randn(90, 5, generator=generator), torch.full((90, 5), 0.5)
    error = ReconstructionError()
    for part in zip(x.split(30), x_hat.split(30), zero_hat.split(30), strict=True):
        error.update(*part)
    x, x_hat, zero_hat = x.double(), x_hat.double(), zero_hat.double()
    variance = x.square().sum(1).mean() - x.mean(0).square().sum()
    squared = (x - x_hat).square().sum(1)
    assert error.variance == pytest.approx(variance.item(), rel=1e-12)
    assert error.explained_variance == pytest.approx(1 - (squared.mean() / variance).item(), rel=1e-12)
    of_zero = (x - zero_hat).square().sum(1).mean()
    assert error.explained_variance_zero_latents == pytest.approx(1 - (of_zero / variance).item(), rel=1e-12)
    assert error.mse_sum == pytest.approx(squared.mean().item())
    assert error.mse == pytest.approx(error.mse_sum / 5)
    cosine = (x * x_hat).sum(1) / (x.norm(dim=1) * x_hat.norm(dim=1))
    assert error.cosine == pytest.approx(cosine.mean().item())


def test_variance_survives_a_huge_mean():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = ReconstructionError()
    for part in (x + 1e8).split(100):
        error.update(part, part, part)
    assert error.variance == pytest.approx(x.var(0, correction=0).sum().item(), rel=1e-6)


def test_undefined_is_nan_and_a_zero_reconstruction_has_cosine_0():
    x = torch.ones(4, 2)
    error = ReconstructionError()
    error.update(x, torch.zeros_like(x), x)
    assert math.isnan(error.explained_variance)
    assert error.cosine == 0
    assert math.isnan(ReconstructionError().variance)


sparse = st.integers(0, 10_000).map(
    lambda seed: torch.relu(torch.randn(40, 7, generator=torch.Generator().manual_seed(seed)) - seed % 4)
)


@settings(deadline=None, max_examples=30)
@given(sparse, st.integers(1, 5))
def test_features_equal_direct_formulas(f, batches):
    features = accumulate(f, batches)
    f = f.double()
    torch.testing.assert_close(features.densities, (f != 0).double().mean(0))
    assert features.l0 == pytest.approx((f != 0).sum(1).double().mean().item())
    assert features.l1 == pytest.approx(f.sum(1).mean().item())
    torch.testing.assert_close(features.max_activations, f.amax(0))
    for feature, mean in enumerate(features.mean_activations):
        active = f[:, feature][f[:, feature] > 0]
        assert mean == pytest.approx(active.mean().item() if len(active) else 0)


@settings(deadline=None, max_examples=30)
@given(sparse)
def test_histograms_count_everything_once(f):
    features = accumulate(f)
    density, activation = features.density_histogram(), features.activation_histogram()
    assert sum(density.counts) == 7
    assert density.counts[0] == (f == 0).all(0).sum()
    assert density.edges[1] == pytest.approx(-math.log10(40))
    assert density.edges[-1] == 0
    assert sum(activation.counts) == (f != 0).sum()
    for histogram in (density, activation):
        assert len(histogram.edges) == len(histogram.counts) + 1
        assert list(histogram.edges) == sorted(set(histogram.edges))


def test_density_floor_bin_holds_one_firing_and_the_last_bin_certainty():
    f = torch.zeros(1000, 3)
    f[0, 0] = 1
    f[:, 1] = 1
    histogram = accumulate(f).density_histogram()
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (1, 1, 1)


def test_activations_beyond_the_edges_go_to_the_outer_bins():
    histogram = accumulate(torch.tensor([[1e-7, 1e7, 1.5]]), 1).activation_histogram()
    assert histogram.edges == ACTIVATION_EDGES
    assert (histogram.counts[0], histogram.counts[-1], sum(histogram.counts)) == (1, 1, 3)
    inner = accumulate(torch.tensor([[1.5, 1.5, 0.0]]), 1).activation_histogram()
    assert inner.counts == (2,)
    assert inner.edges[0] <= 1.5 < inner.edges[1]
