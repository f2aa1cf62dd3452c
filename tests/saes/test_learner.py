"""The training step: schedules, AuxK, decoder norms, thresholds, resuming."""

import math

import pytest
import torch

from sae_sweep.config import InitConfig, OptimizerConfig, SaeSweepError
from sae_sweep.saes.modern import ModernRules
from sae_sweep.saes.optimizer import learning_rate, ramp
from tests.saes.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    KINDS,
    NUMERICS,
    architecture,
    config,
    learner,
    sparse_batch,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_every_architecture_learns(kind, numerics):
    one = learner(kind, numerics, steps=200, optimizer=OptimizerConfig(lr=5e-3))
    metrics = [one.step(sparse_batch(step)) for step in range(200)]
    assert metrics[-1]["mse"] < 0.35 * max(float(m["mse"]) for m in metrics)
    assert metrics[-1]["explained_variance"] > 0.6
    assert one.steps == 200
    assert one.tokens == 200 * BATCH
    for value in metrics[-1].values():
        assert value.shape == ()
        assert not value.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_modern_rows_are_unit_after_every_step(kind):
    one = learner(kind)
    for step in range(5):
        one.step(sparse_batch(step))
        torch.testing.assert_close(one.sae.W_dec.norm(dim=-1), torch.ones(D_SAE), rtol=1e-6, atol=1e-6)


def test_study_rows_are_not():
    one = learner("topk", "study")
    one.step(sparse_batch(0))
    assert (one.sae.W_dec.norm(dim=-1) - 1).abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_adams_gradient_has_no_part_along_its_row(kind, backend):
    one = learner(kind, backend=backend)
    before = one.sae.W_dec.detach().clone()
    one.step(sparse_batch(0))
    mean = one.state()["adam.sae.W_dec.exp_avg"]
    assert mean.abs().max() > 1e-5
    assert (mean * before).sum(dim=-1).abs().max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_resume_equals_uninterrupted_bit_for_bit(kind, numerics, cut):
    whole = learner(kind, numerics, steps=12)
    for step in range(cut):
        whole.step(sparse_batch(step))
    state = whole.state()
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in state.values())
    resumed = learner(kind, numerics, steps=12, seed=77)
    resumed.load_state(state)
    for step in range(cut, 12):
        ours, theirs = whole.step(sparse_batch(step)), resumed.step(sparse_batch(step))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    end, other = whole.state(), resumed.state()
    assert end.keys() == other.keys()
    assert all(torch.equal(end[name], other[name]) for name in end)
    assert (resumed.steps, resumed.tokens) == (12, 12 * BATCH)


def test_a_state_is_a_copy():
    one = learner("batchtopk")
    one.step(sparse_batch(0))
    state = one.state()
    kept = {name: value.clone() for name, value in state.items()}
    one.step(sparse_batch(1))
    other = learner("batchtopk")
    other.load_state(state)
    other.step(sparse_batch(2))
    assert all(torch.equal(kept[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("steps"),
        lambda state: state.pop("adam.sae.W_enc.exp_avg"),
        lambda state: state.pop("objective.silent"),
        lambda state: state.update({"objective.sae.W_enc": torch.zeros(2, 2)}),
        lambda state: state.update({"adam.sae.W_enc.exp_avg": torch.zeros(2, 2)}),
        lambda state: state.update({"objective.sae.W_enc": state["objective.sae.W_enc"].int()}),
        lambda state: state.update({"adam.sae.W_enc.exp_avg": state["adam.sae.W_enc.exp_avg"].bfloat16()}),
        lambda state: state.update({"adam.sae.W_enc.step": torch.tensor(1)}),
        lambda state: state.update({"surprise": torch.zeros(1)}),
        lambda state: state.update({"steps": torch.tensor(1.0)}),
        lambda state: state.update({"steps": torch.tensor([1, 2])}),
        lambda state: state.update({"steps": torch.tensor(-1)}),
        lambda state: state.update({"tokens": torch.tensor(0)}),
    ],
)
def test_a_state_of_something_else_is_refused(damage):
    one = learner("topk")
    one.step(sparse_batch(0))
    state = one.state()
    damage(state)
    with pytest.raises(SaeSweepError, match="does not fit this SAE"):
        learner("topk").load_state(state)


def test_learning_rate_by_fractions_of_the_budget():
    c = config(architecture("topk"), steps=100, optimizer=OptimizerConfig(lr=1.0, warmup_fraction=0.1))
    rates = [learning_rate(step, c) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([i / 20 for i in range(20, 0, -1)])
    assert learning_rate(100, c) == 0.0


def test_the_study_rate_is_constant():
    c = config(architecture("topk"), "study", steps=10)
    assert {learning_rate(step, c) for step in range(10)} == {3e-4}
    one = learner("topk", "study", steps=10)
    assert float(one.step(sparse_batch(0))["lr"]) == pytest.approx(3e-4)


def test_coefficients_warm_up_by_key():
    assert [ramp(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ramp(0, 0) == 1.0
    penalties = {}
    for fraction in (0.0, 0.5):
        arch = architecture("relu", warmup_fraction=fraction)
        one = learner("relu", arch=arch, steps=10)
        metrics = one.step(sparse_batch(0))
        penalties[fraction] = float(metrics["loss"] - metrics["mse"])
    assert penalties[0.5] == pytest.approx(penalties[0.0] / 5, rel=1e-4)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_clipping_bounds_the_gradient(backend):
    """After Adam's first step its mean is (1 - β1) x the gradient without its part along decoder rows."""
    one = learner("topk", optimizer=OptimizerConfig(clip_norm=1e-3), backend=backend)
    one.step(sparse_batch(0))
    means = [value for name, value in one.state().items() if name.endswith("exp_avg")]
    total = math.sqrt(sum(float(mean.square().sum()) for mean in means)) / (1 - one._config.optimizer.beta1)
    assert 0.5e-3 < total <= 1e-3 * 1.001


@pytest.mark.parametrize("how", ["zero", "mean", "geometric_median"])
def test_b_dec_starts_from_the_first_batch(how):
    frozen = OptimizerConfig(lr=1e-30)
    one = learner("topk", init=InitConfig(b_dec=how), optimizer=frozen)
    x = sparse_batch(0)
    one.step(x)
    start = one.sae.b_dec.detach().clone()
    one.step(sparse_batch(1))
    torch.testing.assert_close(one.sae.b_dec, start, rtol=0, atol=1e-20)
    mean = one.sae.normalise(x).x.mean(dim=0)
    distance = (start - mean).norm() / mean.norm()
    low, high = {"zero": (0.999, 1.001), "mean": (0, 1e-6), "geometric_median": (1e-4, 0.5)}[how]
    assert low <= distance <= high


def kill(one, features):
    """Make features that cannot fire."""
    with torch.no_grad():
        one.sae.b_enc[features] = -100.0


def test_modern_counts_tokens_of_silence():
    one = learner("topk", steps=50)
    kill(one, [3, 5])
    dead = [set() for _ in range(6)]
    for step in range(6):
        metrics = one.step(sparse_batch(step))
        dead[step] = metrics["dead"].item()
    silent = one.state()["objective.silent"]
    assert silent[3] == silent[5] == 6 * BATCH
    assert dead[3] == 0
    assert dead[4] >= 2


def test_modern_dead_after():
    rules = ModernRules()
    assert rules.dead_after(config(architecture("topk"), steps=100)) == 10 * BATCH
    assert rules.dead_after(config(architecture("topk"), steps=10_000_000)) == 10_000_000


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_modern_auxk_moves_dead_features_only(kind):
    one = learner(kind, steps=50)
    objective, dead_ones = one._objective, torch.tensor([3, 5, 8])
    kill(one, dead_ones)
    objective.silent[dead_ones] = objective.dead_after
    losses = objective(one.sae.normalise(sparse_batch(0)).x, 0)
    assert losses.output.dead.nonzero().squeeze(-1).tolist() == dead_ones.tolist()
    losses.aux.backward()
    alive = torch.ones(D_SAE, dtype=torch.bool)
    alive[dead_ones] = False
    sae = one.sae
    for gradient in (sae.W_enc.grad.T, sae.W_dec.grad, sae.b_enc.grad):
        assert not gradient[alive].any()
        assert gradient[dead_ones].reshape(3, -1).any(dim=-1).all()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_modern_auxk_by_hand(backend):
    """‖e - ê‖² over the variance of e; ê from the d_in/2 largest pre-activations, negative ones included."""
    one = learner("topk", backend=backend)
    dead = torch.arange(30, 50)
    one._objective.silent[dead] = one._objective.dead_after
    with torch.no_grad():
        one.sae.b_enc[dead] = -3.0
    xn = one.sae.normalise(sparse_batch(0)).x
    losses = one._objective(xn, 0)
    with torch.no_grad():
        z = one.sae.pre_activations(xn)
        error = xn - one.sae.decode_normalised(one.sae.activate(z))
        numerator = 0.0
        for row, e in zip(z, error, strict=True):
            best = sorted(dead.tolist(), key=lambda i: -row[i].item())[: D_IN // 2]
            numerator += (e - sum(row[i] * one.sae.W_dec[i] for i in best)).square().sum().item()
        denominator = ((error - error.mean(dim=0)) ** 2).sum().item()
    assert (z[:, dead] < 0).float().mean() > 0.9
    assert losses.aux.item() == pytest.approx(numerator / denominator, rel=1e-5)


def test_modern_auxk_without_variance_is_zero():
    assert ModernRules().aux_loss(torch.ones(4, D_IN), torch.zeros(4, D_IN)) == 0


def test_auxk_revives():
    revived = {}
    for coefficient in (0.0, 1 / 32):
        one = learner("topk", arch=architecture("topk", aux_coefficient=coefficient), steps=120)
        with torch.no_grad():
            one.sae.b_enc[: D_SAE // 2] = -2.5
        for step in range(120):
            metrics = one.step(sparse_batch(step))
        revived[coefficient] = int(metrics["dead"])
    assert revived[0.0] >= D_SAE // 2 > 2 * revived[1 / 32]


def test_batchtopk_keeps_k_per_token_over_the_batch():
    one = learner("batchtopk", backend="reference")
    losses = one._objective(one.sae.normalise(sparse_batch(0)).x, 0)
    z, f = losses.output.z, losses.output.f
    assert int((f > 0).sum()) == 4 * BATCH
    assert len(set((f > 0).sum(dim=-1).tolist())) > 1
    assert z[f > 0].min() >= z[f == 0].max()


def test_batchtopk_threshold_is_a_bias_corrected_running_mean():
    one = learner("batchtopk", arch=architecture("batchtopk", threshold_momentum=0.9))
    assert one.sae.threshold == 0
    minima = []
    for step in range(30):
        x = sparse_batch(step)
        z = one.sae.pre_activations(one.sae.normalise(x).x)
        minima.append(z.flatten().topk(4 * BATCH).values.min().item())
        metrics = one.step(x)
        weights = [0.9 ** (step - i) for i in range(step + 1)]
        expected = sum(w * m for w, m in zip(weights, minima, strict=True)) / sum(weights)
        assert one.sae.threshold.item() == pytest.approx(expected, rel=1e-5)
        assert metrics["threshold"] == one.sae.threshold
        assert metrics["l0"] == 4
    assert one.sae.threshold != minima[-1]
    f = one.sae.encode(sparse_batch(29))
    assert (f > 0).sum(dim=-1).float().mean() == pytest.approx(4, abs=1)


def test_batchtopk_inference_does_not_depend_on_the_neighbours():
    one = learner("batchtopk")
    for step in range(5):
        one.step(sparse_batch(step))
    x = sparse_batch(9)
    torch.testing.assert_close(one.sae.encode(x)[:3], one.sae.encode(x[:3]))


def test_a_batch_that_keeps_nothing_does_not_move_the_threshold():
    one = learner("batchtopk")
    one.step(sparse_batch(0))
    before = one.sae.threshold.clone()
    kill(one, slice(None))
    one.step(sparse_batch(1))
    assert torch.equal(one.sae.threshold, before)


def test_training_metrics_by_hand():
    one = learner("jumprelu")
    x = sparse_batch(0)
    xn = one.sae.normalise(x).x
    f = one.sae.encode_normalised(xn)
    error = (xn - one.sae.decode_normalised(f)).detach()
    metrics = one.step(x)
    assert metrics["mse"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    variance = xn.var(dim=0, unbiased=False).mean()
    explained = 1 - error.square().mean() / variance
    assert metrics["explained_variance"].item() == pytest.approx(explained.item(), rel=1e-5, abs=1e-6)
    assert metrics["l0"].item() == pytest.approx((f > 0).sum(dim=-1).float().mean().item())
    assert metrics["aux"] == 0


def test_nan_shows_in_the_loss():
    one = learner("topk")
    x = sparse_batch(0)
    x[3, 2] = math.nan
    assert one.step(x)["loss"].isnan()


def test_state_has_the_size_of_the_sae():
    state = learner("topk").state()
    assert state["objective.sae.W_dec"].shape == (D_SAE, D_IN)
