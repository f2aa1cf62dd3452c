"""SAEs of saprmarks/dictionary_learning: `config.json` and `ae.pt`, one trainer's folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_sweep.saes.foreign import (
    ForeignConfig,
    ForeignSAE,
    Origin,
    choice,
    explained,
    fitting,
    origin,
    refuse_not_finite,
    renamed,
)
from sae_sweep.saes.tensor_files import read_state_dict
from sae_sweep.store import read_json

_LINEAR = {"encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T"}
_MATRICES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_RESIDUAL = re.compile(r"resid_(pre|post)_layer_(\d{1,6})")


class _Class(NamedTuple):
    """How a class of the library is read."""

    architecture: str
    names: Mapping[str, str]
    subtracts_b_dec: bool = True
    unused: frozenset[str] = frozenset()


_TOPK = {**_LINEAR, "encoder.bias": "b_enc", "b_dec": "b_dec"}
_GATED = {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
_CLASSES = {
    "AutoEncoder": _Class("standard", {**_LINEAR, "encoder.bias": "b_enc", "bias": "b_dec"}),
    "AutoEncoderNew": _Class(
        "standard", {**_LINEAR, "encoder.bias": "b_enc", "decoder.bias": "b_dec"}, subtracts_b_dec=False
    ),
    "GatedAutoEncoder": _Class("gated", {**_LINEAR, **_GATED}),
    "JumpReluAutoEncoder": _Class("jumprelu", {**_MATRICES, "threshold": "threshold"}, subtracts_b_dec=False),
    "AutoEncoderTopK": _Class("topk", _TOPK, unused=frozenset({"k", "threshold"})),
    "BatchTopKSAE": _Class("jumprelu", {**_TOPK, "threshold": "threshold"}, unused=frozenset({"k"})),
    "MatryoshkaBatchTopKSAE": _Class(
        "jumprelu", {**_MATRICES, "threshold": "threshold"}, unused=frozenset({"k", "group_sizes"})
    ),
}
"""Classes by name, as they compute by default: both BatchTopK with their one threshold, not per batch."""


def read_dictionary_learning(config: Path, weights: Path, remedy: str) -> tuple[ForeignSAE, Origin]:
    """The SAE of a trainer's two files, in float32, and where it comes from.

    Raises:
        SaeSweepError: if a file is damaged, or holds no SAE that can be read here.
    """
    cfg = read_json(config, remedy)
    state = read_state_dict(weights, remedy)
    with explained(config.parent):
        trainer = cfg["trainer"]
        cls = choice("dict_class", trainer["dict_class"], _CLASSES)
        found = ForeignConfig(
            cls.architecture,
            apply_b_dec_to_input=cls.subtracts_b_dec,
            k=_k(trainer, state) if cls.architecture == "topk" else None,
        )
        tensors = renamed(state, cls.names, cls.unused)
        d_in, d_sae = tensors["W_enc"].shape
        d_in, d_sae = trainer.get("activation_dim", d_in), trainer.get("dict_size", d_sae)
        if cls.architecture == "jumprelu" and tensors["threshold"].ndim == 0:
            tensors["threshold"] = tensors["threshold"].expand(len(tensors["b_enc"]))
        tensors = fitting(tensors, found, d_in, d_sae)
        if trainer["dict_class"] == "AutoEncoder":
            tensors = _with_unit_rows(tensors)
            refuse_not_finite(tensors)
        sae = ForeignSAE(found, {name: value.clone() for name, value in tensors.items()})
        return sae, _origin(trainer, cfg.get("buffer"), config.parent)


def _k(trainer: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """k of the config, of the tensor beside the weights, or of both; raises ValueError if they differ."""
    found = [state["k"].tolist()] if "k" in state else []
    found += [trainer["k"]] if "k" in trainer or not found else []
    if found[0] != found[-1]:
        raise ValueError(f"k is {found[0]} in its weights and {found[-1]!r} in its config")
    return found[0]


def _with_unit_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the library's `AutoEncoder.from_pretrained` has them: decoder norms in the latents."""
    norms = tensors["W_dec"].norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return dict(tensors)
    scale = torch.where(norms > 0, norms, 1.0)
    return {
        **tensors,
        "W_dec": tensors["W_dec"] / scale[:, None],
        "W_enc": tensors["W_enc"] * scale,
        "b_enc": tensors["b_enc"] * scale,
    }


def _origin(trainer: Mapping[str, Any], buffer: Any, folder: Path) -> Origin:
    """What the config says; a layer alone does not say which of its activations were read."""
    buffer = buffer if isinstance(buffer, dict) else {}
    hook, block = trainer.get("submodule_name"), trainer.get("layer")
    named = _RESIDUAL.fullmatch(hook) if isinstance(hook, str) else None
    layer = int(named[2]) + (named[1] == "post") if named else None
    if named and type(block) is int and block != int(named[2]):
        raise ValueError(f"layer={block} and submodule_name={hook!r} name different layers")
    return origin(
        "dictionary_learning",
        folder,
        model=trainer.get("lm_name"),
        hook=hook,
        layer=layer,
        context=buffer.get("ctx_len"),
    )
