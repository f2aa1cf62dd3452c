"""Reads the shape of a language model from its `config.json`, without its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_TWO_MATRIX_MLP = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt")
"""Model types with an MLP of two matrices."""
_GATED_MLP = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types with an MLP of three matrices, and heads that may share keys and values."""


class ModelShape(NamedTuple):
    """Shape of a model, as known before it loads."""

    n_layers: int
    d_model: int
    block_parameters: int | None
    """Weights in the matrices of one block; None for an unknown architecture."""


def read_shape(folder: Path) -> ModelShape | None:
    """Read the shape of the model in a local folder; None without a readable `config.json`."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not a local model, or a damaged one: loading it reports the problem
    n_layers = _first(values, "n_layer", "num_hidden_layers", "num_layers")
    d_model = _first(values, "n_embd", "hidden_size")
    if not n_layers or not d_model:
        return None
    return ModelShape(n_layers, d_model, _block_parameters(values, d_model))


def _block_parameters(values: Mapping[str, Any], d_model: int) -> int | None:
    inner = _first(values, "n_inner", "intermediate_size", "ffn_dim") or 4 * d_model
    if values.get("model_type") in _TWO_MATRIX_MLP:
        return 4 * d_model**2 + 2 * d_model * inner
    heads = _first(values, "num_attention_heads")
    if values.get("model_type") in _GATED_MLP and heads:
        head = _first(values, "head_dim") or d_model // heads
        shared = _first(values, "num_key_value_heads") or heads
        return 2 * d_model * head * (heads + shared) + 3 * d_model * inner
    return None


def _first(values: Mapping[str, Any], *keys: str) -> int | None:
    return next((values[key] for key in keys if values.get(key)), None)
