"""SAEs that SAELens wrote: its own `cfg.json` and `sae_weights.safetensors`, of version 6 or before.

They compute what SAELens computes from the same files. What SAELens does beside the usual formulas (decoder
norms in the latents, a finetuned scale) is folded into the weights once.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_sweep.saes.foreign import (
    ForeignConfig,
    ForeignSAE,
    Origin,
    explained,
    fitting,
    flag,
    origin,
    refuse_not_finite,
    resid_pre_layer,
)

_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")
_NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_BEFORE_6 = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}
"""Names of keys that were others before version 6."""


def read_saelens(
    cfg: Any, weights: Mapping[str, Tensor], folder: Path, scale: float | None = None
) -> ForeignSAE:
    """The SAE that SAELens's files describe, in float32.

    Args:
        cfg: content of `cfg.json`.
        weights: content of `sae_weights.safetensors`.
        folder: where they are, for messages.
        scale: what inputs are multiplied by, where the SAE expects an average norm; None if nobody says.

    Raises:
        SaeSweepError: if it is an SAE that cannot be read here, or the weights do not fit the config.
    """
    with explained(folder):
        cfg = _named_as_now(cfg)
        config = _described(cfg)
        tensors = fitting(weights, config, cfg["d_in"], cfg["d_sae"], unused={"scaling_factor"})
        folded = _folded(cfg, tensors, weights)
        refuse_not_finite(folded)
    if config.normalize_activations == "expected_average_only_in" and scale is not None:
        config = replace(config, normalize_activations="none")
        folded["W_enc"] *= scale
        folded["W_dec"] /= scale
        folded["b_dec"] /= scale
    return ForeignSAE(config, folded)


def saelens_origin(cfg: Any, folder: Path, layout: str = "SAELens") -> Origin:
    """What SAELens's `cfg.json` says about where the SAE comes from; this package writes the same keys."""
    with explained(folder):
        said = _metadata(_named_as_now(cfg))
        hook = said.get("hook_name")
        model, context = said.get("model_name"), said.get("context_size")
    return origin(layout, folder, model=model, hook=hook, layer=resid_pre_layer(hook), context=context)


def _named_as_now(cfg: Any) -> dict[str, Any]:
    return {_BEFORE_6.get(key, key): value for key, value in cfg.items()}


def _metadata(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys about the model and its text; before version 6 they stood among the others."""
    metadata = cfg.get("metadata")
    return cfg if metadata is None else {**metadata}


def _described(cfg: Mapping[str, Any]) -> ForeignConfig:
    """The config. Raises KeyError, TypeError and ValueError for what is missing or odd."""
    kind, k = cfg.get("architecture", "standard"), cfg.get("k")
    if cfg.get("activation_fn") == "topk":  # before version 6
        kind, k = "topk", cfg["activation_fn_kwargs"]["k"]
    if kind not in _ARCHITECTURES:
        raise ValueError(f"architecture={kind!r} is none of {', '.join(_ARCHITECTURES)}")
    how = cfg.get("normalize_activations") or "none"
    how = "expected_average_only_in" if how is True else how
    if how not in _NORMALISATIONS:
        raise ValueError(f"normalize_activations={how!r} is none of {', '.join(_NORMALISATIONS)}")
    subtracts = flag(cfg, "apply_b_dec_to_input", True)
    # told to centre what writes to it, TransformerLens has residuals without their mean over d_in
    said = [place.get("model_from_pretrained_kwargs") or {} for place in (cfg, _metadata(cfg))]
    centred = any(keys.get("center_writing_weights") is True for keys in said)
    return ForeignConfig(kind, how, subtracts, k if kind == "topk" else None, centred)


def _folded(
    cfg: Mapping[str, Any], tensors: dict[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors with what SAELens multiplies latents by."""
    if flag(cfg, "rescale_acts_by_decoder_norm", False):
        norms = tensors["W_dec"].norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)  # a feature that decodes to nothing
        tensors["W_enc"] = tensors["W_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
        if "b_enc" in tensors:
            tensors["b_enc"] = tensors["b_enc"] * norms
    if flag(cfg, "finetuning_scaling_factor", False) and "scaling_factor" in weights:
        scale = weights["scaling_factor"].float()
        if scale.shape != tensors["W_dec"].shape[:1]:
            raise ValueError(f"scaling_factor has the shape {list(scale.shape)}")
        tensors["W_dec"] = tensors["W_dec"] * scale[:, None]
    return {name: torch.clone(value) for name, value in tensors.items()}
