"""Locations and file names of cached streams, and the identity that names a stream's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config import RunConfig, digest
from sae_sweep.store.resolved import Resolved

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


def cache_identity(config: RunConfig, fingerprints: Mapping[str, str], resolved: Resolved) -> dict[str, Any]:
    """Return everything that determines a stream's bits, except the layer.

    Args:
        config: config of any run that reads the stream.
        fingerprints: fingerprints of the text and of the LM's weights.
        resolved: how the LM is run on this machine; the number of threads counts on a CPU only.
    """
    identity = config.stream_identity()
    lm = {"dtype": resolved.lm_dtype, "attention": resolved.attention, "batch": resolved.lm_batch}
    return {
        **identity,
        "model": lm,
        "activations": {**identity["activations"], "dtype": resolved.activation_dtype},
        "device": resolved.device,
        "threads": resolved.threads if resolved.device.startswith("cpu") else None,
        "site": config.site,
        "fingerprints": dict(fingerprints),
    }
