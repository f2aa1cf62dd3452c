"""TERM: the tilted mean between the mean and the maximum, its gradients, and what it trains."""

import math

import pytest
import torch

from sae_sweep.config import OptimizerConfig
from sae_sweep.ops import mean_square, tilted_mean
from tests.saes.helpers import architecture, config, learner, sparse_batch

LOSSES = torch.tensor([0.3, 0.1, 0.7, 0.2, 0.65, 0.0])


TAIL = 4


def _with_a_tail(step: int) -> torch.Tensor:
    """A batch whose first tokens are noise, which no few features can reconstruct."""
    x = sparse_batch(step)
    x[:TAIL] = 5 * torch.randn(TAIL, x.shape[1], generator=torch.Generator().manual_seed(step))
    return x


def _gradient(tilt: float, losses: torch.Tensor = LOSSES) -> torch.Tensor:
    leaf = losses.clone().requires_grad_()
    tilted_mean(leaf, tilt).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("tilt", [0.01, 1.0, 20.0, 500.0])
def test_value_and_gradient_are_those_of_the_formula(tilt: float) -> None:
    exact = LOSSES.double().requires_grad_()
    formula = torch.log(torch.exp(tilt * exact).mean()) / tilt
    formula.backward()
    assert tilted_mean(LOSSES, tilt).item() == pytest.approx(formula.item(), rel=1e-6)
    assert exact.grad is not None
    torch.testing.assert_close(_gradient(tilt).double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tilt", [1e-30, 1e-12, 1e-6])
def test_without_tilt_it_is_the_mean(tilt: float) -> None:
    assert tilted_mean(LOSSES, tilt).item() == pytest.approx(LOSSES.mean().item(), rel=1e-5)
    torch.testing.assert_close(_gradient(tilt), torch.full_like(LOSSES, 1 / len(LOSSES)))


@pytest.mark.parametrize("tilt", [1e4, 1e9, 1e30])
def test_a_large_tilt_is_the_maximum(tilt: float) -> None:
    assert tilted_mean(LOSSES, tilt).item() == pytest.approx(0.7, abs=math.log(len(LOSSES)) / tilt + 1e-7)
    torch.testing.assert_close(_gradient(tilt), torch.eye(len(LOSSES))[2])


def test_equal_losses_share_the_gradient() -> None:
    torch.testing.assert_close(_gradient(1e9, torch.ones(4)), torch.full((4,), 0.25))
    assert tilted_mean(torch.zeros(4), 1e9) == 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "relu"])
def test_a_step_without_tilt_has_the_gradients_of_the_mean(kind: str, backend: str) -> None:
    """And so each parameter's gradient, on every path of the objective."""
    gradients = []
    for tilt in (None, 1e-9):
        one = learner(kind, backend=backend, optimizer=OptimizerConfig(lr=3e-3, tilt=tilt))
        losses = one._objective(one.sae.normalise(sparse_batch(0)).x, 0)
        losses.loss.backward()
        gradients.append({name: p.grad for name, p in one.sae.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-3, atol=1e-6)


def test_the_loss_is_that_of_the_worst_token_and_auxk_and_mse_stays_the_mean() -> None:
    one = learner("topk", optimizer=OptimizerConfig(tilt=1e9))
    one._objective.silent[:] = one._objective.dead_after
    with torch.no_grad():
        one.sae.b_enc[:8] = -9  # these stay silent
    xn = one.sae.normalise(sparse_batch(0)).x
    losses = one._objective(xn, 0)
    error = xn - one.sae.b_dec - losses.output.reconstruction
    worst, aux = error.square().mean(dim=1).max().item(), losses.aux.item()
    assert aux > 0.1
    assert losses.loss.item() == pytest.approx(worst + aux / 32, rel=1e-5)
    assert losses.mse.item() == pytest.approx(mean_square(error).item())


def test_training_with_a_tilt_serves_the_tail_at_the_expense_of_the_rest() -> None:
    tail, rest = {}, {}
    for tilt in (None, 10.0):
        one = learner("topk", steps=60, optimizer=OptimizerConfig(lr=3e-3, tilt=tilt))
        for step in range(60):
            one.step(_with_a_tail(step))
        with torch.no_grad():
            xn = torch.stack([one.sae.normalise(_with_a_tail(1000 + step)).x for step in range(20)])
            error = xn - one.sae.decode_normalised(one.sae.encode_normalised(xn))
        losses = error.square().mean(dim=2)
        tail[tilt], rest[tilt] = losses[:, :TAIL].mean().item(), losses[:, TAIL:].mean().item()
    assert tail[10.0] < 0.98 * tail[None]
    assert rest[10.0] > 1.05 * rest[None]


def test_runs_without_a_tilt_keep_their_ids() -> None:
    prints = {"corpus": "a", "model": "b"}
    assert "tilt" not in OptimizerConfig().identity()
    ids = {
        tilt: config(architecture("topk"), optimizer=OptimizerConfig(tilt=tilt)).run_id(prints)
        for tilt in (None, 1.0, 500.0)
    }
    assert len(set(ids.values())) == 3
