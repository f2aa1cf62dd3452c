"""Exported SAEs, loaded by the real SAELens in its own environment, give the same features and outputs.

    SAELENS_PYTHON=/path/to/venv/bin/python pytest tests/saes/test_saelens_oracle.py

The interpreter needs sae-lens 6. SAELENS_ACTIVATIONS=FILE.safetensors, with raw residuals `x` [n, d_in],
replaces the synthetic ones.
"""

import logging
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_sweep.saes import SAE, Learner, build_sae, save_sae
from tests.saes.helpers import KINDS, NUMERICS, architecture, config, sparse_batch

PYTHON = os.environ.get("SAELENS_PYTHON")
ACTIVATIONS = os.environ.get("SAELENS_ACTIVATIONS")
STEPS, ROWS = 60, 256
TOLERANCE = 1e-5
TIE = 1e-6

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="SAELENS_PYTHON does not name an interpreter with sae-lens 6"
)


class Theirs(NamedTuple):
    features: Tensor
    pre_activations: Tensor
    reconstruction: Tensor


def batches() -> list[Tensor]:
    """Batches of raw residuals: for training, and a last one for the comparison."""
    if ACTIVATIONS is None:
        return [sparse_batch(step, n=ROWS, d_in=64) for step in range(STEPS + 1)]
    x = load_file(ACTIVATIONS)["x"].float()
    rows = torch.Generator().manual_seed(0)
    drawn = [x[torch.randint(len(x), (ROWS,), generator=rows)] for _ in range(STEPS)]
    return [*drawn, x]


def trained(kind: str, numerics: str, data: list[Tensor]) -> SAE:
    d_in = data[0].shape[-1]
    arch = architecture(kind, **({"k": 16} if kind.endswith("topk") else {}))
    sae = build_sae(arch, d_in, 8 * d_in, seed=1, numerics=numerics)
    learner = Learner(sae, config(arch, numerics, steps=STEPS, batch=ROWS), "cpu")
    for x in data[:-1]:
        learner.step(x)
    with torch.no_grad():
        learner.sae.b_dec += 0.1  # so that a bias subtracted on one side only is noticed
    return learner.sae


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[SAE, Tensor, Theirs]]:
    """Every SAE, the activations, and SAELens's answers from one process, because its import is slow."""
    data = batches()
    saes = {(kind, numerics): trained(kind, numerics, data) for kind in KINDS for numerics in NUMERICS}
    folders = {key: tmp_path_factory.mktemp("_".join(key)) for key in saes}
    for key, sae in saes.items():
        save_sae(
            sae, folders[key] / "sae", metadata={"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre"}
        )
        save_file({"x": data[-1].contiguous()}, folders[key] / "x.safetensors")
    script = Path(__file__).with_name("saelens_oracle.py")
    command = [str(PYTHON), "-W", "ignore", str(script), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = {key: Theirs(**load_file(folder / "out.safetensors")) for key, folder in folders.items()}
    return {key: (saes[key], data[-1], answers[key]) for key in saes}


def undecided(sae: SAE, z: Tensor) -> Tensor:
    """Tokens where rounding decides which features fire: z within TIE of the next one, or of a threshold."""
    threshold = sae.state_dict().get("threshold")
    if threshold is not None:
        return ((z - threshold).abs() <= TIE).any(dim=-1)
    k = getattr(sae.architecture, "k", None)
    if k is None:
        return torch.zeros(len(z), dtype=torch.bool)
    top = z.topk(k + 1, dim=-1).values
    return top[:, -2] - top[:, -1] <= TIE


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Norm of the difference over the norm of `theirs`, per token."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_saelens_gives_the_same(kind, numerics, compared):
    sae, x, theirs = compared[kind, numerics]
    with torch.no_grad():
        ours, rebuilt = sae.encode(x), sae(x)
    tied = undecided(sae, theirs.pre_activations)
    logging.getLogger(__name__).info("%s %s: %d of %d tokens tied", kind, numerics, tied.sum(), len(tied))
    assert tied.float().mean() < 0.05
    assert (ours > 0).sum() > 0
    assert relative_error(ours, theirs.features)[~tied].max() <= TOLERANCE
    assert relative_error(rebuilt, theirs.reconstruction)[~tied].max() <= TOLERANCE
