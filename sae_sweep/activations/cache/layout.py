"""Locations and file names of cached streams, and the identity that names a stream's folder."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config import RunConfig, digest
from sae_sweep.store import is_partial, without_start
from sae_sweep.store.resolved import Resolved

TOKENS = "tokens"
"""Name of the part of a shard that holds token ids; the other parts are named by their layer."""

_PART = re.compile(r"shard-\d{6,}_(tokens|layer-\d{2,})\.safetensors")


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

    def files(self) -> tuple[list[os.DirEntry[str]], list[str]]:
        """Return our files, by their names, and the names of everything else; links are never ours.

        Raises:
            OSError: if the folder cannot be read.
        """
        with os.scandir(self.root) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
        ours = [entry for entry in there if entry.is_file(follow_symlinks=False) and self._names(entry.name)]
        return ours, [entry.name for entry in there if entry not in ours]

    def _names(self, name: str) -> bool:
        fixed = name in (self.manifest.name, self.used.name)
        return fixed or is_part(name) or is_partial(Path(name))


def is_part(name: str) -> bool:
    """Return whether a file name comes from `CacheFolder.part`."""
    return _PART.fullmatch(name) is not None


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
        "fingerprints": without_start(fingerprints),
    }
