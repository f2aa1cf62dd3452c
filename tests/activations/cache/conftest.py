"""A cache of a tiny model's activations, filled and read like the tasks do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep.activations import ActivationStream, LanguageModel
from sae_sweep.activations.cache import CachedStream, CacheFolder, cache_identity, fill, locate
from sae_sweep.config import RunConfig
from sae_sweep.store.resolved import Resolved
from tests.activations.test_stream import config, make


class Bench:
    """The cache of one config in its own folder; records the layers of each forward pass."""

    def __init__(self, lm: LanguageModel, root: Path, exhausted: str = "repeat", **keys: Any) -> None:
        self.lm = lm
        self.root = root
        self.config: RunConfig = config(**keys)
        self.computed: list[tuple[int, ...]] = []
        """Layers of each forward pass."""
        self._exhausted = exhausted

    @property
    def folder(self) -> CacheFolder:
        return locate(self.root, self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        dtype = str(self.stream([1]).dtype).removeprefix("torch.")
        resolved = Resolved("cpu AVX2", "float32", dtype, "eager", "cpu", 64, 1)
        return cache_identity(self.config, {"corpus": "c"}, resolved)

    def stream(self, layers: Sequence[int]) -> ActivationStream:
        return make(_Counting(self.lm, self.computed), self.config, layers, self._exhausted)

    def fill(self, *layers: int, steps: int) -> CachedStream:
        wanted = dict.fromkeys(layers, steps)
        fill(self.folder, self.identity, wanted, self.stream, d_in=16, batch=self.config.batch)
        return self.open(*layers)

    def open(self, *layers: int) -> CachedStream:
        return CachedStream(self.folder, layers, torch.device("cpu"))

    def files(self) -> dict[str, int]:
        """Return the modification time of each shard file by name; unfinished files start with a dot."""
        return {file.name: file.stat().st_mtime_ns for file in self.folder.root.glob("shard-*.safetensors")}

    def with_activations(self, **keys: Any) -> "Bench":
        self.config = replace(self.config, activations=replace(self.config.activations, **keys))
        return self


class _Counting:
    def __init__(self, lm: LanguageModel, computed: list[tuple[int, ...]]) -> None:
        self._lm, self._computed = lm, computed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def residuals(self, tokens: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        self._computed.append(tuple(layers))
        return self._lm.residuals(tokens, layers)


@pytest.fixture
def bench(lm: LanguageModel, tmp_path: Path) -> Bench:
    return Bench(lm, tmp_path / "cache")


def flip_byte(file: Path) -> None:
    """Change one byte in the middle of a file."""
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
