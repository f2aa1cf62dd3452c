"""SAEs that SAELens wrote: its own `cfg.json` and `sae_weights.safetensors`, of version 6 or before.

They compute what SAELens computes from the same files. What SAELens does beside the usual formulas (decoder
norms in the latents, a finetuned scale) is folded into the weights once.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, SaeSweepError
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import SAE, Normalised

log = logging.getLogger(__name__)

_VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""Tensors of length d_sae, by SAELens's name of the architecture."""
_NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_BEFORE_6 = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}
"""Names of keys that were others before version 6."""
_LARGEST = 2**31


@dataclass(frozen=True)
class SaeLensConfig(ArchitectureConfig):
    """What SAELens's `cfg.json` says about the computation."""

    kind: ClassVar[str] = "saelens"
    architecture: str
    """standard, topk, jumprelu or gated."""
    normalize_activations: str
    """none, expected_average_only_in, constant_norm_rescale or layer_norm."""
    apply_b_dec_to_input: bool
    k: int | None = None
    """Active features per token (topk)."""


class SaeLensSAE(SAE):
    """An SAE of SAELens at inference; its caller flattens the activations of attention heads (`hook_z`)."""

    architecture: SaeLensConfig

    def __init__(self, config: SaeLensConfig, tensors: Mapping[str, Tensor]) -> None:
        d_in, d_sae = tensors["W_enc"].shape
        with torch.device("meta"):  # the given tensors take the place of the base class's
            super().__init__(config, d_in, d_sae, numerics="modern")
        self.normalisation = config.normalize_activations
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value))
        if "b_enc" not in tensors:
            self.b_enc = None

    def normalise(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        if self.normalisation == "layer_norm":
            return super().normalise(x)
        mean = x.new_zeros((*x.shape[:-1], 1))
        if self.normalisation == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return Normalised(x / scale, mean, scale)
        return Normalised(x, mean, mean + 1)

    def pre_activations(self, xn: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        z = (xn - self.b_dec if self.architecture.apply_b_dec_to_input else xn) @ self.W_enc
        if self.architecture.architecture == "gated":
            return z
        return z if self.b_enc is None else z + self.b_enc

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        kind = self.architecture.architecture
        if kind == "topk":
            return keep_top(z, self.architecture.k or self.d_sae)
        if kind == "gated":
            open_gates = z + self.get_parameter("b_gate") > 0
            return (z * self.get_parameter("r_mag").exp() + self.get_parameter("b_mag")).relu() * open_gates
        return z.relu() * (z > self.get_parameter("threshold")) if kind == "jumprelu" else z.relu()


def read_saelens(cfg: Any, weights: Mapping[str, Tensor], folder: Path) -> SaeLensSAE:
    """The SAE that SAELens's files describe, in float32.

    Args:
        cfg: content of `cfg.json`.
        weights: content of `sae_weights.safetensors`.
        folder: where they are, for messages.

    Raises:
        SaeSweepError: if it is an SAE that cannot be read here, or the weights do not fit the config.
    """
    try:
        config, d_in, d_sae = _described(cfg)
        tensors = _fitting(weights, config, d_in, d_sae)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise SaeSweepError(f"{folder} holds no SAE that can be read: {why}") from error
    if config.normalize_activations == "expected_average_only_in":
        log.warning("this SAE expects inputs that are scaled to an average norm of sqrt(d_in), as in SAELens")
    return SaeLensSAE(config, _folded(cfg, tensors, weights))


def _described(cfg: Any) -> tuple[SaeLensConfig, int, int]:
    """The config with its sizes. Raises KeyError, TypeError and ValueError for what is missing or odd."""
    cfg = {_BEFORE_6.get(key, key): value for key, value in cfg.items()}
    sizes = [cfg[key] for key in ("d_in", "d_sae")]
    for size in sizes:
        if type(size) is not int or not 0 < size < _LARGEST:
            raise ValueError(f"d_in and d_sae are {sizes}")
    kind, k = cfg.get("architecture", "standard"), cfg.get("k")
    if cfg.get("activation_fn") == "topk":  # before version 6
        kind, k = "topk", cfg["activation_fn_kwargs"]["k"]
    if kind not in _VECTORS:
        raise ValueError(f"architecture={kind!r} is none of {', '.join(_VECTORS)}")
    if kind == "topk" and (type(k) is not int or not 0 < k <= sizes[1]):
        raise ValueError(f"k={k!r} is no number of features of {sizes[1]}")
    how = cfg.get("normalize_activations") or "none"
    how = "expected_average_only_in" if how is True else how
    if how not in _NORMALISATIONS:
        raise ValueError(f"normalize_activations={how!r} is none of {', '.join(_NORMALISATIONS)}")
    subtracts = bool(cfg.get("apply_b_dec_to_input", True))
    return SaeLensConfig(kind, how, subtracts, k if kind == "topk" else None), sizes[0], sizes[1]


def _fitting(
    weights: Mapping[str, Tensor], config: SaeLensConfig, d_in: int, d_sae: int
) -> dict[str, Tensor]:
    """The tensors in float32. Raises ValueError if one is missing, of another shape or not finite."""
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(_VECTORS[config.architecture], (d_sae,))
    if config.architecture == "topk" and "b_enc" not in weights:
        del shapes["b_enc"]
    found = {name: tuple(weights[name].shape) for name in shapes if name in weights}
    if wrong := [name for name, shape in shapes.items() if found.get(name) != shape]:
        raise ValueError(f"{', '.join(wrong)} do not fit d_in={d_in} and d_sae={d_sae}")
    if odd := sorted(weights.keys() - shapes.keys() - {"scaling_factor"}):
        raise ValueError(f"{', '.join(odd)} are no tensors of architecture={config.architecture}")
    if bad := [name for name in weights if not weights[name].isfinite().all()]:
        raise ValueError(f"{', '.join(bad)} hold NaN or inf")
    return {name: weights[name].float() for name in shapes}


def _folded(
    cfg: Mapping[str, Any], tensors: dict[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors with what SAELens multiplies latents by."""
    if cfg.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"] = tensors["W_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
        if "b_enc" in tensors:
            tensors["b_enc"] = tensors["b_enc"] * norms
    if cfg.get("finetuning_scaling_factor") and "scaling_factor" in weights:
        tensors["W_dec"] = tensors["W_dec"] * weights["scaling_factor"].float()[:, None]
    return {name: torch.clone(value) for name, value in tensors.items()}
