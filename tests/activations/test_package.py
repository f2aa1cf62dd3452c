import subprocess
import sys

import pytest

import sae_sweep.activations


def test_the_package_comes_without_torch_until_it_is_needed():
    program = """
import sys
import sae_sweep.activations, sae_sweep.text
from sae_sweep.activations import weights_fingerprint

sys.exit(sum(name in sys.modules for name in ("torch", "transformer_lens", "datasets", "lightning")))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_name_is_there_and_no_other():
    for name in sae_sweep.activations.__all__:
        assert getattr(sae_sweep.activations, name).__module__.startswith("sae_sweep.activations.")
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = sae_sweep.activations.Nonsense
