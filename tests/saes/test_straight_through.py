"""JumpReLU's gradients against the formulas of definitions.md 1.3, entry by entry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.saes.straight_through import heaviside, jump
from tests.saes.helpers import D_SAE, learner, sparse_batch


def kernel(u):
    return 1.0 if abs(u) < 0.5 else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 2.0))
def test_gradients_follow_the_formulas(seed, bandwidth):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(6, 5, generator=draw, dtype=torch.float64).requires_grad_()
    threshold = torch.rand(5, generator=draw, dtype=torch.float64).requires_grad_()
    g_f, g_h = torch.randn(2, 6, 5, generator=draw, dtype=torch.float64)
    (g_f * jump(z, threshold, bandwidth) + g_h * heaviside(z, threshold, bandwidth)).sum().backward()
    for i in range(5):
        t, to_threshold = threshold[i].item(), 0.0
        for n in range(6):
            near = kernel((z[n, i].item() - t) / bandwidth) / bandwidth
            to_threshold -= (t * g_f[n, i].item() + g_h[n, i].item()) * near
            assert z.grad[n, i].item() == (g_f[n, i].item() if z[n, i].item() > t else 0.0)
        assert threshold.grad[i].item() == pytest.approx(to_threshold, rel=1e-9, abs=1e-12)


def test_values():
    z, threshold = torch.tensor([[-1.0, 0.2, 0.3, 0.4]]), torch.full((4,), 0.3)
    assert torch.equal(jump(z, threshold, 0.1), torch.tensor([[0.0, 0.0, 0.0, 0.4]]))
    assert torch.equal(heaviside(z, threshold, 0.1), torch.tensor([[0.0, 0.0, 0.0, 1.0]]))


def test_the_whole_loss_moves_a_threshold_as_the_paper_says():
    """dL/dθ_i = -(1/N) Σ_n K((z-θ)/ε)/ε · (λ - θ · 2⟨e_n, w_i⟩ / d_in), with L the modern JumpReLU loss."""
    one = learner("jumprelu", steps=10)
    sae, objective = one.sae, one._objective
    with torch.no_grad():
        sae.threshold.uniform_(0.2, 1.0, generator=torch.Generator().manual_seed(0))
    xn = sae.normalise(sparse_batch(0)).x
    objective(xn, 10**6).loss.backward()
    z = sae.pre_activations(xn)
    error = xn - sae.decode_normalised(sae.activate(z))
    eps, lam, theta = objective.bandwidth, sae.architecture.l0_coefficient, sae.threshold
    near = (((z - theta) / eps).abs() < 0.5).float() / eps
    per_token = near * (lam - theta * 2 * (error @ sae.W_dec.T) / xn.shape[-1])
    assert near.any()
    torch.testing.assert_close(sae.threshold.grad, -per_token.mean(dim=0), rtol=1e-4, atol=1e-7)


def test_modern_thresholds_never_go_below_zero():
    one = learner("jumprelu")
    with torch.no_grad():
        one.sae.threshold[0] = -0.5
    one.step(sparse_batch(0))
    assert one.sae.threshold.min() == 0


def test_the_study_threshold_is_the_exponential_of_what_is_trained():
    one = learner("jumprelu", "study")
    assert torch.equal(one.sae.threshold, torch.ones(D_SAE))
    for step in range(20):
        one.step(sparse_batch(step))
    log_threshold = one.state()["objective.log_threshold"]
    assert log_threshold.any()
    assert torch.equal(one.sae.threshold, log_threshold.exp())
