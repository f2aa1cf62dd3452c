"""Runs the real SAELens on exported SAEs; started with an interpreter that has SAELens 6, not by pytest.

    python saelens_oracle.py FOLDER...

Each FOLDER holds `sae/` and `x.safetensors` with raw residuals `x` [n, d_in]. `out.safetensors` is written
beside them, with `features` [n, d_sae], `pre_activations` [n, d_sae] and `reconstruction` [n, d_in].
"""

import sys
from pathlib import Path

from sae_lens import SAE
from safetensors.torch import load_file, save_file


def answer(folder: Path) -> None:
    sae = SAE.load_from_disk(folder / "sae")
    x = load_file(folder / "x.safetensors")["x"]
    seen = {}
    sae.hook_sae_acts_pre.add_hook(lambda z, hook: seen.update(z=z.detach()))
    features = sae.encode(x).detach()
    tensors = {
        "features": features,
        "pre_activations": seen["z"],
        "reconstruction": sae.decode(features).detach(),
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "out.safetensors")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        answer(Path(argument))
