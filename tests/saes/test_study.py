"""`numerics=study` equals an independent derivation of the study's trainer, over 50 steps, to 1e-5."""

import pytest
import torch

from sae_sweep.config import ArchitectureConfig
from sae_sweep.saes import Learner, build_sae
from tests.saes.helpers import D_IN, architecture, config, sparse_batch
from tests.saes.study_reference import StudySAE, StudyTrainer

STEPS = 50
SEED = 49


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def _dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


def both(arch: ArchitectureConfig, d_sae: int, **reference) -> tuple[Learner, StudyTrainer]:
    product = Learner(
        build_sae(arch, D_IN, d_sae, seed=SEED, numerics="study"), config(arch, "study", steps=STEPS), "cpu"
    )
    return product, StudyTrainer(StudySAE(arch.kind, D_IN, d_sae, SEED, **reference))


def assert_same_path(product: Learner, reference: StudyTrainer) -> None:
    for step in range(STEPS):
        x = sparse_batch(step).to(torch.get_default_dtype())
        loss = reference.step(x)
        metrics = product.step(x)
        assert metrics["loss"].item() == pytest.approx(loss, rel=1e-5), f"step {step}"
        for name, theirs in reference.sae.named_parameters():
            ours = product.state()[f"objective.{'' if name == 'log_threshold' else 'sae.'}{name}"]
            torch.testing.assert_close(ours, theirs.data, rtol=1e-5, atol=1e-5, msg=f"{name} at step {step}")


@pytest.mark.usefixtures("_dtype")
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize(("d_sae", "k"), [(96, 2), (1024, 3)])
def test_topk_and_batchtopk_with_dead_features(kind, d_sae, k):
    product, reference = both(architecture(kind, k=k), d_sae, k=k)
    assert_same_path(product, reference)
    dead = reference.sae.dead_seen
    assert dead[:4] == [0, 0, 0, 0]
    assert min(dead[4:10]) > (512 if d_sae == 1024 else 0)  # AuxK acts, and its limit of 512 is met


@pytest.mark.usefixtures("_dtype")
@pytest.mark.parametrize("bandwidth", [None, 0.2])
def test_jumprelu(bandwidth):
    arch = architecture("jumprelu", l0_coefficient=0.004, bandwidth=bandwidth)
    product, reference = both(arch, 64, coefficient=0.004, bandwidth=bandwidth or 0.001)
    assert_same_path(product, reference)
    assert reference.sae.log_threshold.abs().max() > 1e-3


@pytest.mark.usefixtures("_dtype")
def test_relu():
    product, reference = both(architecture("relu", l1_coefficient=0.01), 64, coefficient=0.01)
    assert_same_path(product, reference)
    assert reference.sae.b_enc.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_comparison_can_fail(kind):
    """The modern preset leaves the study's path at once."""
    arch = architecture(kind)
    product = Learner(
        build_sae(arch, D_IN, 64, seed=SEED, numerics="modern"), config(arch, "study", steps=STEPS), "cpu"
    )
    reference = StudyTrainer(StudySAE(kind, D_IN, 64, SEED, k=4, coefficient=0.02))
    with pytest.raises(AssertionError):
        assert_same_path(product, reference)
