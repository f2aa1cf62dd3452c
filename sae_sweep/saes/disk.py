"""SAEs on disk, in the layout of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

SAELens reads them unchanged, with the same features and reconstructions: its `normalize_activations` is our
normalisation, a missing encoder bias is written as zeros, and BatchTopK is written as what it is at
inference, a JumpReLU with one threshold for all features. `metadata.sae_sweep` in cfg.json keeps the
original architecture.
"""

import dataclasses
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sae_sweep.config import (
    ARCHITECTURES,
    ArchitectureConfig,
    ConfigError,
    SaeSweepError,
    TopKConfig,
    build,
)
from sae_sweep.saes.architectures import BatchTopK
from sae_sweep.saes.base import SAE
from sae_sweep.saes.build import CLASSES, RULES
from sae_sweep.saes.checksum import tensors_checksum
from sae_sweep.saes.tensor_files import read_safetensors
from sae_sweep.store import read_json, write_folder_atomic

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
LAYOUT_VERSION = "6.0.0"
"""SAELens's version of the layout; it would convert the config of an older one first."""

_SAELENS_WORDS = {
    **{how: how for how in ("layer_norm", "none", "constant_norm_rescale")},
    "centred": "none",
}
"""`normalize_activations` by normalisation. SAELens centres residuals by keys of the model."""
_CENTRED_MODEL = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
_LARGEST = 2**31
"""Bound on d_in and d_sae, so that their product is a number of weights."""
_FREE_KEYS = ("metadata", "device", "checksum")
"""Keys of cfg.json that do not affect what an SAE computes."""
REMEDY = "delete its folder, and train or export the SAE again"


def save_sae(sae: SAE, folder: Path, *, metadata: Mapping[str, Any]) -> None:
    """Write `sae` to `folder` atomically, replacing an earlier one.

    Args:
        sae: any SAE of this package.
        folder: will hold the two files.
        metadata: JSON values for readers of the file, under SAELens's names if it has one:
            `model_name`, `hook_name`, `context_size`, `dataset_path`, `prepend_bos`.

    Raises:
        SaeSweepError: if a weight is NaN or infinite, or the folder cannot be written.
    """
    weights = _weights(sae)
    if bad := _not_finite(weights):
        raise SaeSweepError(f"{folder}: {bad} of the SAE holds NaN or inf, so it is not written")

    def write(temporary: Path) -> None:
        (temporary / CONFIG_FILE).write_text(
            json.dumps(_cfg(sae, weights, metadata), indent=2) + "\n", encoding="utf-8"
        )
        (temporary / WEIGHTS_FILE).write_bytes(save(weights))  # its own errors hide the disk's

    write_folder_atomic(folder, write)


def _cfg(sae: SAE, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    if sae.saelens_architecture is None:
        raise SaeSweepError("an SAE of another library is not written again: copy its files")
    if sae.input_scale is not None:
        raise SaeSweepError("this SAE is in training: its Learner's finish() gives the one to save")
    arch, cfg = sae.architecture, _saelens_cfg(sae)
    ours = {"architecture": {"kind": arch.kind, **dataclasses.asdict(arch)}, "numerics": sae.numerics}
    if sae.normalisation != "layer_norm":  # as files were before there were others
        ours["normalisation"] = sae.normalisation
    ours["checksum"] = _checksum(weights, cfg, ours)
    described = {**metadata, **(_CENTRED_MODEL if sae.normalisation == "centred" else {})}
    return {**cfg, "metadata": {"sae_lens_version": LAYOUT_VERSION, **described, "sae_sweep": ours}}


def _saelens_cfg(sae: SAE) -> dict[str, Any]:
    """The keys by which SAELens builds the SAE."""
    arch = sae.architecture
    cfg: dict[str, Any] = {
        "architecture": sae.saelens_architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": _SAELENS_WORDS[sae.normalisation],
        "reshape_activations": "none",
    }
    if isinstance(arch, TopKConfig) and sae.saelens_architecture == "topk":
        cfg["k"] = arch.k
    return cfg


def _checksum(weights: Mapping[str, Tensor], cfg: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Checksum of the weights and of all values that decide what the SAE computes, without other metadata."""
    deciding = [{key: value for key, value in part.items() if key not in _FREE_KEYS} for part in (cfg, ours)]
    return tensors_checksum(weights, json.dumps(deciding, sort_keys=True))


def _weights(sae: SAE) -> dict[str, Tensor]:
    """Copies of the tensors in SAELens's layout, on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in _saelens_layout(sae).items()
    }


def _saelens_layout(sae: SAE) -> dict[str, Tensor]:
    weights = dict(sae.state_dict())
    weights.setdefault("b_enc", torch.zeros(sae.d_sae, device=sae.b_dec.device))
    if isinstance(sae, BatchTopK):
        weights["threshold"] = sae.threshold.expand(sae.d_sae)
    return weights


def read_own(folder: Path, cfg: Any) -> SAE:
    """The SAE that `save_sae` wrote to a folder, bit for bit; on the CPU.

    Args:
        folder: holds the two files.
        cfg: content of its `cfg.json`.

    Raises:
        SaeSweepError: if a file is missing, damaged, or describes no SAE of this version.
    """
    config, file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    expected = _described(cfg, config, device="meta")  # takes no memory, however large the SAE
    weights = read_safetensors(file, REMEDY)
    _refuse_other(cfg, expected, weights, folder)
    sae = _described(cfg, config, device="cpu")
    values = {name: weights[name] for name in sae.state_dict()}
    if isinstance(sae, BatchTopK):
        values["threshold"] = weights["threshold"][0]
    sae.load_state_dict(values)
    if not all(weights[name].equal(value) for name, value in _saelens_layout(sae).items()):
        raise _damaged(file, "its b_enc or threshold is none of this architecture")
    return sae


def saved_by(folder: Path) -> str | None:
    """Id of the run that wrote an SAE, from its `cfg.json`; None if that is missing or damaged."""
    try:
        return str(read_json(folder / CONFIG_FILE)["metadata"]["provenance"]["run_id"])
    except (SaeSweepError, KeyError, TypeError):
        return None


def _described(cfg: Any, file: Path, device: str) -> SAE:
    """The SAE that cfg.json describes, without its weights."""
    try:
        ours = cfg["metadata"]["sae_sweep"]
        values = dict(ours["architecture"])
        kind, numerics = ARCHITECTURES[values.pop("kind")], ours["numerics"]
        for key in ("d_in", "d_sae"):
            if type(cfg[key]) is not int or not 0 < cfg[key] < _LARGEST:
                raise ValueError(f"{key}={cfg[key]!r}")
        ours = {"checksum": None, "normalisation": "layer_norm", **ours}
        _refuse_other_keys({"architecture", "numerics", "checksum", "normalisation"}, ours)
        if numerics not in RULES:
            raise ValueError(f"numerics={numerics!r}")
        if ours["normalisation"] not in _SAELENS_WORDS:
            raise ValueError(f"normalisation={ours['normalisation']!r}")
        _refuse_other_keys({field.name for field in dataclasses.fields(kind)}, values)  # no defaults
        architecture: ArchitectureConfig = build(kind, values)
        if problems := architecture.problems(cfg["d_sae"]):
            raise ValueError(problems[0])
        with torch.device(device):
            sae = CLASSES[architecture.kind].sae(architecture, cfg["d_in"], cfg["d_sae"], numerics)
        sae.normalisation = ours["normalisation"]
        _refuse_another_cfg(cfg, _saelens_cfg(sae))
        return sae
    except (ConfigError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise SaeSweepError(
            f"{file} does not describe an SAE of this version of sae_sweep ({error!r}); {REMEDY}"
        ) from error


def _refuse_another_cfg(cfg: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse keys of SAELens that describe another SAE than `metadata.sae_sweep`."""
    _refuse_other_keys(ours.keys() | {"metadata"}, cfg)
    for key in ours.keys() - set(_FREE_KEYS):
        if cfg[key] != ours[key]:
            raise ValueError(f"{key}={cfg[key]!r}, and not {ours[key]!r}")


def _refuse_other_keys(wanted: Set[str], found: Mapping[str, Any]) -> None:
    if odd := sorted(wanted ^ found.keys()):
        raise ValueError(f"{odd[0]} is {'unknown' if odd[0] in found else 'missing'}")


def _refuse_other(cfg: Any, expected: SAE, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights that are not those which were written with this cfg.json."""
    known = {name: (value.shape, value.dtype) for name, value in _saelens_layout(expected).items()}
    found = {name: (value.shape, value.dtype) for name, value in weights.items()}
    wrong = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    file = folder / WEIGHTS_FILE
    if wrong:
        raise _damaged(file, f"{', '.join(wrong)} do not fit {CONFIG_FILE}")
    if bad := _not_finite(weights):
        raise _damaged(file, f"{bad} holds NaN or inf")
    ours = cfg["metadata"]["sae_sweep"]
    if "checksum" in ours and ours["checksum"] != _checksum(weights, cfg, ours):
        raise _damaged(file, f"it and {CONFIG_FILE} do not fit their checksum")


def _damaged(file: Path, what: str) -> SaeSweepError:
    return SaeSweepError(f"{file} is damaged: {what}; {REMEDY}")


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor with NaN or inf."""
    return next((name for name, value in weights.items() if not value.isfinite().all()), None)
