"""Training with kernels equals training by the dense formulas: losses, gradients, metrics, switches."""

import pytest
import torch

from sae_sweep.saes import Learner
from sae_sweep.saes.layouts import DenseLayout, SparseLayout
from tests.saes.helpers import D_SAE, KINDS, NUMERICS, architecture, config, fresh_sae, learner, sparse_batch

WIDE = 256
"""d_sae at which latents are sparse enough for kernels."""


def both_backends(kind: str, numerics: str, **changes) -> tuple[Learner, Learner]:
    both = []
    for backend in ("reference", "cpu"):
        sae = fresh_sae(changes.get("arch") or architecture(kind), numerics, d_sae=WIDE)
        with torch.no_grad():
            if sae.b_enc is not None and "k" not in sae.architecture.uses:
                sae.b_enc -= 0.8  # a fresh ReLU fires half of the time
        both.append(Learner(sae, config(sae.architecture, numerics, backend=backend), "cpu"))
    return both[0], both[1]


def losses_and_gradients(one: Learner, x: torch.Tensor, step: int = 10**6):
    losses = one._objective(one.sae.normalise(x).x, step)
    losses.loss.backward()
    gradients = {name: p.grad for name, p in one._objective.named_parameters() if p.requires_grad}
    return losses, gradients


def assert_same(reference: Learner, fast: Learner, x: torch.Tensor, layout: type = SparseLayout) -> None:
    (a, theirs), (b, ours) = losses_and_gradients(reference, x), losses_and_gradients(fast, x)
    assert isinstance(a.output.layout, DenseLayout)
    assert isinstance(b.output.layout, layout)
    for name in ("loss", "mse", "aux"):
        torch.testing.assert_close(getattr(b, name), getattr(a, name), rtol=1e-5, atol=1e-7)
    assert torch.equal(a.output.dead, b.output.dead)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None
            continue
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("dead", [0, 5, 100])
def test_one_step_has_the_reference_gradients(kind, numerics, dead):
    reference, fast = both_backends(kind, numerics)
    for one in (reference, fast):
        one._objective.silent[:dead] = one._objective.dead_after
        with torch.no_grad():
            one.sae.W_enc[:, :dead] *= -0.3
    assert_same(reference, fast, sparse_batch(0))
    reference.sae.zero_grad()
    fast.sae.zero_grad()
    assert_same(reference, fast, sparse_batch(1, n=37))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_many_steps_stay_together(kind, numerics):
    reference, fast = both_backends(kind, numerics)
    for step in range(30):
        a, b = reference.step(sparse_batch(step)), fast.step(sparse_batch(step))
        assert a.keys() == b.keys()
        for name in a:
            assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-3, abs=2e-3), (step, name)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu"])
def test_a_batch_too_dense_for_kernels_uses_the_formulas(kind):
    arch = architecture(kind, k=40) if kind != "relu" else architecture(kind)
    sae = [fresh_sae(arch, "modern") for _ in range(2)]
    reference, fast = (
        Learner(one, config(arch, backend=backend), "cpu")
        for one, backend in zip(sae, ("reference", "cpu"), strict=True)
    )
    assert_same(reference, fast, sparse_batch(0), layout=DenseLayout)


def test_study_thresholds_near_zero_use_the_formulas():
    """There a latent of 0 is inside its threshold's kernel, so all have gradients."""
    reference, fast = both_backends("jumprelu", "study")
    for one in (reference, fast):
        with torch.no_grad():
            one._objective.log_threshold[3] = -9.0
    assert_same(reference, fast, sparse_batch(0), layout=DenseLayout)


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_batchtopk_finds_its_floor_again_when_the_scale_jumps(scale):
    """The old threshold misleads the search: too few above it, or far too many."""
    reference, fast = both_backends("batchtopk", "modern")
    for one in (reference, fast):
        for step in range(3):
            one.step(sparse_batch(step))
        with torch.no_grad():
            one.sae.W_enc *= scale
    a, b = reference.step(sparse_batch(3)), fast.step(sparse_batch(3))
    for name in a:
        assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-3, abs=1e-3), name


def test_batchtopk_searches_once_while_its_latents_shrink(monkeypatch):
    """Early in training they do at every step, and the threshold's running mean lags behind."""
    fast = both_backends("batchtopk", "modern")[1]
    fast.step(sparse_batch(0))
    searches = []
    above = fast._kernels.encode_above
    monkeypatch.setattr(fast._kernels, "encode_above", lambda *args: searches.append(1) or above(*args))
    for _ in range(20):
        with torch.no_grad():
            fast.sae.W_enc *= 0.94
        fast.step(sparse_batch(0))
    assert len(searches) == 20
    assert isinstance(losses_and_gradients(fast, sparse_batch(0))[0].output.layout, SparseLayout)


def test_batchtopk_resumes_with_the_same_floor(monkeypatch):
    """It decides which of equal latents are kept."""
    one, other = (both_backends("batchtopk", "modern")[1] for _ in range(2))
    for step in range(5):
        with torch.no_grad():
            one.sae.W_enc *= 0.94
        one.step(sparse_batch(step))
    other.load_state(one.state())
    floors = []
    for each in (one, other):
        above = each._kernels.encode_above
        spy = lambda *args, above=above: floors.append(float(args[3][0])) or above(*args)  # noqa: E731
        monkeypatch.setattr(each._kernels, "encode_above", spy)
        each.step(sparse_batch(5))
        monkeypatch.undo()
    assert len(floors) == 2
    assert floors[0] == floors[1]


def test_batchtopk_stays_sparse_if_the_last_floor_admits_too_many():
    """As after a batch of unusually small latents."""
    arch = architecture("batchtopk", k=8)
    fast = both_backends("batchtopk", "modern", arch=arch)[1]
    for step in range(5):
        fast.step(sparse_batch(step))
    fast._objective.latest_minimum *= 0.3
    assert isinstance(losses_and_gradients(fast, sparse_batch(5))[0].output.layout, SparseLayout)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_lost(kind):
    one = learner(kind, backend="cpu")
    bad = sparse_batch(0)
    bad[5, 3] = torch.nan
    assert not torch.isfinite(one.step(bad)["loss"])
    one = learner(kind, backend="cpu")
    with torch.no_grad():
        one.sae.W_enc[:, 7] = torch.nan
    assert not torch.isfinite(one.step(sparse_batch(0))["loss"])


def test_states_are_interchangeable():
    reference, fast = both_backends("topk", "modern")
    for one in (reference, fast):
        one.step(sparse_batch(0))
    assert reference.state().keys() == fast.state().keys()
    fast.load_state(reference.state())
    for step in range(1, 4):
        a, b = reference.step(sparse_batch(step)), fast.step(sparse_batch(step))
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-5)


def test_float64_uses_the_formulas():
    sae = fresh_sae(architecture("topk"), "modern").double()
    one = Learner(sae, config(sae.architecture), "cpu")
    losses = one._objective(torch.randn(8, 16, dtype=torch.float64), 0)
    assert isinstance(losses.output.layout, DenseLayout)
    assert losses.output.f.shape == (8, D_SAE)
