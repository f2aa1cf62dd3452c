"""SAEs that the real sparsify and dictionary_learning made, in their own environment, compute the same here.

    FOREIGN_PYTHON=/path/to/venv/bin/python pytest tests/saes/test_foreign_oracle.py

The interpreter needs eai-sparsify and dictionary-learning.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_sweep.saes import load_sae
from tests.saes.foreign_files import DICTIONARIES

PYTHON = os.environ.get("FOREIGN_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="FOREIGN_PYTHON does not name an interpreter with sparsify and dictionary_learning"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folders of all kinds from one process, because the imports are slow."""
    root = tmp_path_factory.mktemp("foreign")
    script = Path(__file__).with_name("foreign_oracle.py")
    command = [str(PYTHON), "-W", "ignore", str(script), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("kind", ["sparsify_topk", "sparsify_groupmax", *DICTIONARIES])
def test_the_library_gives_the_same(kind, made):
    sae, answer = load_sae(made / kind), load_file(made / kind / "answer.safetensors")
    features, reconstruction = answer["features"], answer["reconstruction"]
    assert 0.02 < (features > 0).float().mean() < 0.9
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(answer["x"]), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(answer["x"]), reconstruction, rtol=1e-5, atol=1e-5)
