"""SAEs on disk, in the layout of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

SAELens reads them unchanged, with the same features and reconstructions: its `layer_norm` is our
normalisation, a missing encoder bias is written as zeros, and BatchTopK is written as what it is at
inference, a JumpReLU with one threshold for all features. `metadata.sae_sweep` in cfg.json keeps the
original architecture.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sae_sweep.config import ARCHITECTURES, ArchitectureConfig, SaeSweepError, TopKConfig
from sae_sweep.saes.architectures import SAES, BatchTopK
from sae_sweep.saes.base import SAE
from sae_sweep.saes.build import RULES
from sae_sweep.store import read_json, write_folder_atomic

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
LAYOUT_VERSION = "6.0.0"
"""SAELens's version of the layout; it would convert the config of an older one first."""

_SAELENS_ARCHITECTURE = {"topk": "topk", "batchtopk": "jumprelu", "jumprelu": "jumprelu", "relu": "standard"}


def save_sae(sae: SAE, folder: Path, *, metadata: Mapping[str, Any]) -> None:
    """Write `sae` to `folder` atomically, replacing an earlier one.

    Args:
        sae: any SAE of this package.
        folder: will hold the two files.
        metadata: JSON values for readers of the file, under SAELens's names if it has one:
            `model_name`, `hook_name`, `context_size`, `dataset_path`, `prepend_bos`.
    """

    def write(temporary: Path) -> None:
        (temporary / CONFIG_FILE).write_text(
            json.dumps(_cfg(sae, metadata), indent=2) + "\n", encoding="utf-8"
        )
        (temporary / WEIGHTS_FILE).write_bytes(save(_weights(sae)))  # its own errors hide the disk's

    write_folder_atomic(folder, write)


def _cfg(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
    arch = sae.architecture
    ours = {"architecture": {"kind": arch.kind, **dataclasses.asdict(arch)}, "numerics": sae.numerics}
    cfg = {
        "architecture": _SAELENS_ARCHITECTURE[arch.kind],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": "layer_norm",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": LAYOUT_VERSION, **metadata, "sae_sweep": ours},
    }
    return {**cfg, "k": arch.k} if arch.kind == "topk" and isinstance(arch, TopKConfig) else cfg


def _weights(sae: SAE) -> dict[str, Tensor]:
    weights = dict(sae.state_dict())
    weights.setdefault("b_enc", torch.zeros(sae.d_sae))
    if isinstance(sae, BatchTopK):
        weights["threshold"] = sae.threshold.expand(sae.d_sae)
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}


def load_sae(path: Path | str) -> SAE:
    """Load an SAE that `save_sae` wrote, bit for bit, on the CPU.

    Args:
        path: a run folder, or the `sae/` folder inside it.

    Raises:
        SaeSweepError: if a file is missing, damaged, or was not written by this package.
    """
    folder = _folder_of(Path(path))
    cfg = read_json(folder / CONFIG_FILE)
    sae = _empty_sae(cfg, folder / CONFIG_FILE)
    weights = _read_weights(folder / WEIGHTS_FILE)
    if sae.b_enc is None:
        weights.pop("b_enc", None)
    if isinstance(sae, BatchTopK) and weights.get("threshold", torch.empty(0)).shape == (sae.d_sae,):
        weights["threshold"] = weights["threshold"][0]
    _refuse_other_shapes(sae, weights, folder / WEIGHTS_FILE)
    sae.load_state_dict(weights)
    return sae


def saved_by(folder: Path) -> str | None:
    """Id of the run that wrote an SAE, from its `cfg.json`; None if that is missing or damaged."""
    try:
        return str(read_json(folder / CONFIG_FILE)["metadata"]["provenance"]["run_id"])
    except (SaeSweepError, KeyError, TypeError):
        return None


def _folder_of(path: Path) -> Path:
    for folder in (path, path / "sae"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise SaeSweepError(f"no SAE in {path}: neither it nor its sae/ folder has a {CONFIG_FILE}")


def _empty_sae(cfg: Any, file: Path) -> SAE:
    try:
        ours = cfg["metadata"]["sae_sweep"]
        values = dict(ours["architecture"])
        architecture: ArchitectureConfig = ARCHITECTURES[values.pop("kind")](**values)
        numerics = ours["numerics"]
        if numerics not in RULES:
            raise ValueError(f"numerics {numerics}")
        return SAES[architecture.kind](architecture, int(cfg["d_in"]), int(cfg["d_sae"]), numerics)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SaeSweepError(
            f"{file} does not describe an SAE of this version of sae_sweep ({error!r}): train it again"
        ) from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise SaeSweepError(f"cannot read {file}: {error}; train or export the SAE again") from error


def _refuse_other_shapes(sae: SAE, weights: Mapping[str, Tensor], file: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise SaeSweepError(
            f"{file} is damaged or belongs to another {CONFIG_FILE}: {', '.join(wrong)} do not fit"
        )
