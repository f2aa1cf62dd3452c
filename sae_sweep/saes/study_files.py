"""SAEs of the study's own trainer, bartbussmann/BatchTopK: `config.json` and `sae.pt` of a checkpoint."""

from pathlib import Path

from sae_sweep.saes.foreign import (
    ForeignConfig,
    ForeignSAE,
    Origin,
    choice,
    explained,
    fitting,
    flag,
    origin,
    renamed,
    resid_pre_layer,
)
from sae_sweep.saes.tensor_files import read_state_dict
from sae_sweep.store import read_json

_NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_BIASED = {**_NAMES, "b_enc": "b_enc"}
_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "vanilla": ("standard", _BIASED),
    "topk": ("topk", _NAMES),
    "batchtopk": ("batchtopk", _NAMES),
    "jumprelu": ("jumprelu", {**_BIASED, "jumprelu.log_threshold": "threshold"}),
}
"""Architecture and tensors by `sae_type`; the encoder's bias is written for all, and used by two."""


def read_study(config: Path, weights: Path, remedy: str) -> tuple[ForeignSAE, Origin]:
    """The SAE of a checkpoint's two files, in float32, and where it comes from.

    The trainer's batchtopk has no threshold: also at inference it keeps the k x tokens largest of a batch.

    Raises:
        SaeSweepError: if a file is damaged, or holds no SAE that can be read here.
    """
    cfg = read_json(config, remedy)
    state = read_state_dict(weights, remedy)
    with explained(config.parent):
        kind, names = choice("sae_type", cfg["sae_type"], _TYPES)
        found = ForeignConfig(
            kind,
            "layer_norm" if flag(cfg, "input_unit_norm", False) else "none",
            apply_b_dec_to_input=kind != "jumprelu",
            k=cfg["top_k"] if kind in ("topk", "batchtopk") else None,
        )
        tensors = fitting(renamed(state, names, {"b_enc"}), found, cfg["act_size"], cfg["dict_size"])
        if kind == "jumprelu":
            tensors["threshold"] = tensors["threshold"].exp()
        hook = cfg.get("hook_point")
        described = origin(
            "the study",
            config.parent,
            model=cfg.get("model_name"),
            hook=hook,
            layer=resid_pre_layer(hook),
            context=cfg.get("seq_len"),
        )
    return ForeignSAE(found, tensors), described
