"""`tracking=none` and `--help` never pay for W&B."""

import subprocess
import sys


def test_wandb_is_imported_late() -> None:
    code = "import sys, sae_sweep.tracking; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
