"""Two threads of one process may train at the same time."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sae_sweep.config import (
    ArchitectureConfig,
    BatchTopKConfig,
    JumpReLUConfig,
    ReLUConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.ops.choose import Choice
from sae_sweep.ops.cpu import CPUKernels
from sae_sweep.saes import Learner, build_sae
from sae_sweep.saes import learner as learner_module
from sae_sweep.store import cache_folder
from tests.ops.helpers import CPU_SCREENS, draw

D_IN, DICTIONARY, BATCH, STEPS = 32, 16, 250, 8
ARCHITECTURES: list[ArchitectureConfig] = [
    TopKConfig(k=8),
    BatchTopKConfig(k=8),
    JumpReLUConfig(),
    ReLUConfig(),
]


def train(architecture: ArchitectureConfig, seed: int) -> dict[str, torch.Tensor]:
    """The state after some steps, with a third of the features dead from the start."""
    sae = build_sae(architecture, D_IN, DICTIONARY * D_IN, seed=seed, numerics="modern")
    config = RunConfig(
        architecture=architecture, dictionary=DICTIONARY, tokens=10**6, batch=BATCH, backend="cpu"
    )
    learner = Learner(sae, config, "cpu", Path("/unused"))
    learner._objective.silent[: 5 * D_IN] = learner._objective.dead_after
    with torch.no_grad():
        sae.W_enc[:, : 5 * D_IN] *= 1e-3
    for step in range(STEPS):
        learner.step(draw(BATCH, D_IN, seed=100 * seed + step))
    return learner.state()


@pytest.mark.parametrize("screen", CPU_SCREENS)
def test_two_threads_train_as_one(screen: str, monkeypatch: pytest.MonkeyPatch):
    """With the same bits, which they would not have if they shared a scratch buffer."""
    kernels = CPUKernels(cache_folder(None))
    if screen == "cpu-int16" and not kernels.has_int16:
        pytest.skip("this processor has no 16-bit screen")
    kernels = CPUKernels(cache_folder(None), screen=screen.removeprefix("cpu-"))
    monkeypatch.setattr(learner_module, "choose_kernels", lambda *_: Choice(kernels))
    runs = [(architecture, seed) for seed, architecture in enumerate(ARCHITECTURES)]
    alone = [train(*run) for run in runs]
    before, interval = torch.get_num_threads(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(before,)) as threads:
            together = list(threads.map(lambda run: train(*run), runs))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
