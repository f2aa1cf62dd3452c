"""Sparse codes of a text as a cache that Delphi reads, to explain features and score the explanations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save

from sae_sweep.analysis.codes import Codes
from sae_sweep.config import SaeSweepError
from sae_sweep.store import disk_errors, write_bytes

_LATENTS = 4096
"""Features per file."""


class Read(NamedTuple):
    """What was read: Delphi loads the tokenizer by the model's name."""

    model: str
    """Hub id, or a folder."""
    hook: str
    text: str


def write_delphi(folder: Path, read: Read, tokens: np.ndarray, codes: Codes) -> Path:
    """Write the cache, and return the folder that Delphi's `LatentDataset` takes as `raw_dir`.

    Args:
        folder: will hold `latents/HOOK/`.
        read: model, hook and text.
        tokens: ids of all sequences, [sequences, length].
        codes: of these tokens, or of the first of them; sequences of which a part is missing are left out.

    Raises:
        SaeSweepError: if the codes of not even one sequence are held, or a file cannot be written.
    """
    whole = _whole_sequences(tokens, codes)
    if not whole:
        raise SaeSweepError(
            "the first sequence alone has more activations than are held: lower analysis.seq_len"
        )
    locations, activations = _entries(codes, whole)
    place = folder / "latents" / read.hook
    config = place / "config.json"
    with disk_errors(config):
        config.unlink(missing_ok=True)  # while it is missing, the rest is not whole
        for old in place.glob("*.safetensors"):
            old.unlink()
    for first in range(0, codes.d_sae, _LATENTS):
        last = min(first + _LATENTS, codes.d_sae) - 1
        inside = (locations[:, 2] >= first) & (locations[:, 2] <= last)
        tensors = {
            "locations": (locations[inside] - [0, 0, first]).astype(np.uint32),
            "activations": activations[inside],
            "tokens": tokens[:whole].astype(np.int64),
        }
        write_bytes(place / f"{first}_{last}.safetensors", save(tensors))
    write_bytes(config, (json.dumps(_config(read, tokens[:whole]), indent=2) + "\n").encode())
    return place.parent


def _whole_sequences(tokens: np.ndarray, codes: Codes) -> int:
    """How many sequences, from the first on, are held with all of their codes."""
    if codes.complete:
        return len(tokens)
    return int(codes.sequences.max()) if len(codes.sequences) else 0


def _entries(codes: Codes, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequence, position and feature of each non-zero of the first sequences, [nnz, 3], and its value."""
    counts = codes.offsets.diff()
    rows = codes.sequences.repeat_interleave(counts)
    positions = codes.positions.long().repeat_interleave(counts)
    locations = torch.stack([rows, positions, codes.features.long()], 1)
    inside = rows < sequences
    return locations[inside].numpy(), codes.values[inside].numpy()


def _config(read: Read, tokens: np.ndarray) -> Mapping[str, Any]:
    """What Delphi wants to know beside the tokens, under its own names."""
    sequences, length = tokens.shape
    return {
        "model_name": read.model,
        "dataset_repo": read.text,
        "cache_ctx_len": length,
        "n_tokens": sequences * length,
    }
