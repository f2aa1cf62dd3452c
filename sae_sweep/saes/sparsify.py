"""SAEs of EleutherAI's sparsify (`sae` before 2025): `cfg.json` and `sae.safetensors`.

Each lies in a folder that is named for its hookpoint, a module whose output it reads: `layers.8`. A
`config.json` in the folder of the training run, above it, names the model.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_sweep.config import SaeSweepError
from sae_sweep.saes.foreign import (
    ForeignConfig,
    ForeignSAE,
    Origin,
    choice,
    explained,
    fitting,
    origin,
    renamed,
)
from sae_sweep.saes.tensor_files import read_safetensors
from sae_sweep.store import read_json

_NAMES = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_ACTIVATIONS = {"topk": "topk", "groupmax": "groupmax"}
_OTHER_MODELS = {
    "transcode": "a transcoder, which predicts other activations than it reads",
    "skip_connection": "one with a linear skip connection",
    "signed": "one with signed latents",
}
"""Keys of `cfg.json` that make it something else than an SAE of this package."""
_BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d{1,6})")
"""A transformer block, by its name in the models of `transformers`."""


def read_sparsify(config: Path, weights: Path, remedy: str) -> tuple[ForeignSAE, Origin]:
    """The SAE of sparsify's two files, in float32, and where it comes from.

    Raises:
        SaeSweepError: if a file is damaged, or holds no SAE that can be read here.
    """
    cfg = read_json(config, remedy)
    tensors = read_safetensors(weights, remedy)
    with explained(config.parent):
        if odd := [what for key, what in _OTHER_MODELS.items() if cfg.get(key, False)]:
            raise ValueError(f"it is {odd[0]}")
        kind = choice("activation", cfg.get("activation", "topk"), _ACTIVATIONS)
        found = ForeignConfig(kind, k=cfg["k"])
        sae = ForeignSAE(found, fitting(renamed(tensors, _NAMES), found, cfg["d_in"], _d_sae(cfg)))
    return sae, _origin(config.parent)


def _d_sae(cfg: Mapping[str, Any]) -> Any:
    if cfg.get("num_latents"):
        return cfg["num_latents"]
    d_in, factor = cfg["d_in"], cfg["expansion_factor"]
    return d_in * factor if type(d_in) is int and type(factor) is int else None


def _origin(folder: Path) -> Origin:
    """What the folders around the files say: their names, and the config of the training run."""
    place = Path(os.path.abspath(folder))
    if re.fullmatch(r"seed\d+", place.name):  # one of several SAEs of a hookpoint
        place = place.parent
    run = _run_config(place.parent)
    points = run.get("hookpoints")
    known = isinstance(points, list) and place.name in points
    hook = place.name if known or re.search(r"\.\d+(\.|$)", place.name) else None
    block = _BLOCK.fullmatch(hook or "")
    layer = int(block[1]) + 1 if block else None
    return origin(
        "sparsify", folder, model=run.get("model"), hook=hook, layer=layer, context=run.get("ctx_len")
    )


def _run_config(folder: Path) -> Mapping[str, Any]:
    """Config of the training run, which is only a label here; empty if it is missing or damaged."""
    try:
        found = read_json(folder / "config.json")
    except SaeSweepError:
        return {}
    return found if isinstance(found, dict) else {}
