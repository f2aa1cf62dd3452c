"""Locations and file names of cached streams, and the identity that names a stream's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_sweep.activations.device import dtype_name
from sae_sweep.config import RunConfig, digest

TOKENS = "tokens"
"""Name of the part of a shard that holds token ids; the other parts are named by their layer."""


@dataclass(frozen=True)
class CacheFolder:
    """Folder of one stream."""

    root: Path

    @property
    def name(self) -> str:
        """Hash of the stream's identity, which `stream=` selects it by."""
        return self.root.name

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def used(self) -> Path:
        """An empty file, modified at each use."""
        return self.root / "used"

    def part(self, number: int, part: str) -> str:
        """Return the file name of a part of a shard: a layer's number, or `tokens`."""
        label = part if part == TOKENS else f"layer-{int(part):02}"
        return f"shard-{number:06}_{label}.safetensors"


def cache_root(cache: Path) -> Path:
    """Return the folder of all cached streams."""
    return cache / "activations"


def locate(cache: Path, identity: Mapping[str, Any]) -> CacheFolder:
    """Return the folder of the stream with an identity from `cache_identity`."""
    return CacheFolder(cache_root(cache) / digest(identity))


def cache_identity(
    config: RunConfig,
    fingerprints: Mapping[str, str],
    *,
    lm_dtype: torch.dtype,
    attention: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return everything that determines a stream except the layer, with `auto` resolved.

    Args:
        config: config of any run that reads the stream.
        fingerprints: fingerprints of the text and of the LM's weights.
        lm_dtype: dtype of the LM's arithmetic.
        attention: `LanguageModel.attention`; the implementations differ by rounding.
        dtype: dtype that activations are rounded to.
    """
    identity = config.stream_identity()
    return {
        **identity,
        "model": {**identity["model"], "dtype": dtype_name(lm_dtype), "attention": attention},
        "activations": {**identity["activations"], "dtype": dtype_name(dtype)},
        "site": config.site,
        "fingerprints": dict(fingerprints),
    }
