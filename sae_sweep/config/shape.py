"""Reads the shape of a language model from its `config.json`, without its weights."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_TWO_MATRIX_MLP = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt")
"""Model types with an MLP of two matrices."""
_GATED_MLP = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types with an MLP of three matrices, and heads that may share keys and values."""

_LAYERS = ("n_layer", "num_hidden_layers", "num_layers")
_WIDTH = ("n_embd", "hidden_size")
_HEADS = ("num_attention_heads", "num_key_value_heads", "n_head")
_INNER = ("n_inner", "intermediate_size", "ffn_dim")
_CONTEXT = ("n_positions", "max_position_embeddings")
_MOST = {
    **dict.fromkeys(_LAYERS, 2**10),
    **dict.fromkeys(_WIDTH, 2**18),
    **dict.fromkeys(_HEADS, 2**12),
    **dict.fromkeys(_INNER, 2**20),
    "head_dim": 2**14,
    "vocab_size": 2**24,
    **dict.fromkeys(("n_positions", "n_ctx", "max_position_embeddings"), 2**26),
}
"""Bounds far above every known model: a library would try to build what a damaged file says."""
_LARGEST_FILE = 2**24
"""Bytes of a `config.json`; those of known models have some kB."""


class ModelShape(NamedTuple):
    """Shape of a model, as known before it loads."""

    n_layers: int
    d_model: int
    block_parameters: int | None
    """Weights in the matrices of one block; None for an unknown architecture."""
    context: int | None
    """Longest sequence in tokens, if the config names one."""
    vocabulary: int | None
    """Number of token ids that its embedding knows, if the config names it."""


def read_shape(folder: Path) -> ModelShape | None:
    """Read the shape of the model in a local folder; None without a usable `config.json`."""
    try:
        values = _read(folder / "config.json")
    except (OSError, ValueError):
        return None  # not a local model, or a damaged one: `shape_problem` says why
    n_layers, d_model = _first(values, *_LAYERS), _first(values, *_WIDTH)
    if not n_layers or not d_model:
        return None
    context, vocabulary = _first(values, *_CONTEXT), _first(values, "vocab_size")
    return ModelShape(n_layers, d_model, _block_parameters(values, d_model), context, vocabulary)


def shape_problem(folder: Path) -> str | None:
    """Why the `config.json` of a local folder describes no model, in one line; None if it may, or is none."""
    file = folder / "config.json"
    try:
        _read(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"cannot read {file}: {error.strerror or error}"
    except ValueError as error:
        return f"{file} is damaged ({error}): save or download the model again"
    return None


def _read(file: Path) -> Mapping[str, Any]:
    """Read a `config.json`; ValueError if it is none, or its sizes are absurd."""
    there = file.stat()
    if not stat.S_ISREG(there.st_mode):
        raise ValueError("it is not a file")
    if there.st_size > _LARGEST_FILE:
        raise ValueError(f"it has {there.st_size:,} bytes")
    try:
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is no mapping")
    for key, most in _MOST.items():
        value = values.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            raise ValueError(f"{key}={str(value)[:40]}, and not a number from 1 to {most:,}")
    return values


def _finite(constant: str) -> float:
    if constant == "NaN":
        raise ValueError("it holds NaN")
    return float(constant)


def _block_parameters(values: Mapping[str, Any], d_model: int) -> int | None:
    inner = _first(values, *_INNER) or 4 * d_model
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
