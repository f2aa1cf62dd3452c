"""Where a cached stream lies, and what makes two streams the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_sweep.activations.device import dtype_name
from sae_sweep.config import Config, digest

TOKENS = "tokens"
"""The part of a shard that holds the token ids; the others are named by their layer."""


@dataclass(frozen=True)
class CacheFolder:
    """The folder of one stream."""

    root: Path

    @property
    def name(self) -> str:
        """Hash of the stream: how a person names it."""
        return self.root.name

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def lock(self) -> Path:
        """There while a process writes."""
        return self.root / "lock.json"

    @property
    def guard(self) -> Path:
        """Locked by the system for the moment in which a lock file is looked at and replaced."""
        return self.root.parent / ".guard"

    @property
    def used(self) -> Path:
        """An empty file; its time is that of the last use."""
        return self.root / "used"

    def part(self, number: int, part: str) -> str:
        """File name of a part of a shard: of a layer, or `tokens`."""
        label = part if part == TOKENS else f"layer-{int(part):02}"
        return f"shard-{number:06}_{label}.safetensors"


def cache_root(cache: Path) -> Path:
    """The folder with all cached streams, inside the cache folder."""
    return cache / "activations"


def locate(cache: Path, identity: Mapping[str, Any]) -> CacheFolder:
    """The folder of the stream that `cache_identity` describes."""
    return CacheFolder(cache_root(cache) / digest(identity))


def cache_identity(
    config: Config,
    fingerprints: Mapping[str, str],
    *,
    lm_dtype: torch.dtype,
    attention: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Everything that determines a stream but for the layer, `auto` replaced by what it came to.

    Args:
        config: of any run that reads the stream.
        fingerprints: of the text and of the LM's weights.
        lm_dtype: the LM's arithmetic.
        attention: how the LM computes it, `LanguageModel.attention`: its rounding differs.
        dtype: what activations are rounded to.
    """
    identity = config.stream_identity()
    return {
        **identity,
        "model": {**identity["model"], "dtype": dtype_name(lm_dtype), "attention": attention},
        "activations": {**identity["activations"], "dtype": dtype_name(dtype)},
        "site": config.site,
        "fingerprints": dict(fingerprints),
    }
