"""SAEs on disk, for runs that start from them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from sae_sweep.config import InitConfig, RunConfig
from sae_sweep.saes import SAE, save_sae
from tests.saes.helpers import architecture, config, fresh_sae


def saved(folder: Path, kind: str, seed: int = 8) -> tuple[SAE, str]:
    """An SAE with biases and thresholds of its own, on disk."""
    sae = fresh_sae(architecture(kind), "modern", seed=seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for name, value in sae.state_dict().items():
            if name.startswith(("b_", "threshold")):
                value.copy_(0.3 * torch.rand(value.shape, generator=generator))
    save_sae(sae, folder, metadata={})
    return sae, str(folder)


def start_config(path: str | None, kind: str = "topk", **keys: Any) -> RunConfig:
    return config(architecture(kind), init=InitConfig(sae=path), **keys)


def fitting(path: Path, kind: str, found: SAE) -> RunConfig:
    """A config of the size and the k of an SAE."""
    k = getattr(found.architecture, "k", None)
    one = config(architecture(kind, **({"k": k} if k else {})), init=InitConfig(sae=str(path)))
    return dataclasses.replace(one, dictionary=found.d_sae // found.d_in)


def as_saelens(folder: Path) -> None:
    """Take what says that the SAE is ours from its cfg.json."""
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"].pop("sae_sweep")
    (folder / "cfg.json").write_text(json.dumps(cfg))
