"""The manifest of a cached stream: what is there, and what every byte of it should be."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.config import SaeSweepError, digest
from sae_sweep.config.run import NUMERICS_VERSION
from sae_sweep.store import read_json, write_text

VERSION = f"1.{NUMERICS_VERSION}"
"""Of the layout, and of what a config means."""

Position = dict[str, Any]
"""What `ActivationStream.position` gives."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a shard."""

    file: str
    """Name inside the stream's folder."""
    bytes: int
    checksum: str
    """XXH3-128 of the file, in hex."""


@dataclass(frozen=True)
class Shard:
    """One buffer of the stream, cut into full batches in training order."""

    number: int
    first_step: int
    steps: int
    position: Position
    """Of the stream where the shard starts."""
    epochs: float
    """Times the text has been read, as far as the end of the shard."""
    files: Mapping[str, FileRecord]
    """By part: a layer's number, or `tokens`."""


@dataclass(frozen=True)
class BadStep:
    """Where a layer's activations cannot be trained on; from the next shard on it is not cached."""

    step: int
    problem: str


@dataclass(frozen=True)
class Manifest:
    """Rewritten as a whole after each complete shard."""

    stream: Mapping[str, Any]
    """What `cache_identity` gave, in plain words."""
    d_in: int
    dtype: str
    batch: int
    """Rows a step."""
    following: Position
    """Of the stream behind the last shard."""
    shards: tuple[Shard, ...] = ()
    ended: bool = False
    """The text ends behind the last shard (`dataset.exhausted=stop`)."""
    bad: Mapping[int, BadStep] = field(default_factory=dict)
    """By layer."""
    wanted: Mapping[int, int] = field(default_factory=dict)
    """Layer -> the most steps of it that any command asked for."""

    @property
    def steps(self) -> int:
        """Steps in all shards together."""
        return int(self.following["step"])

    def missing_parts(self, shard: Shard, wanted: Mapping[int, int]) -> list[str]:
        """The parts of a shard that `wanted` (layer -> steps) needs and that are not there."""
        layers = [
            layer
            for layer, steps in sorted(wanted.items())
            if shard.first_step < steps and self.usable(layer, shard.first_step)
        ]
        parts = [*map(str, layers), TOKENS] if layers else []
        return [part for part in parts if part not in shard.files]

    def usable(self, layer: int, step: int) -> bool:
        """False behind a step that cannot be trained on: no run goes past it."""
        return layer not in self.bad or self.bad[layer].step >= step

    def layers_to_extend(self, wanted: Mapping[int, int]) -> list[int]:
        """The layers that need shards behind the last one."""
        return [
            layer for layer, steps in sorted(wanted.items()) if self.steps < steps and layer not in self.bad
        ]

    def covers(self, wanted: Mapping[int, int]) -> bool:
        """True where nothing is left to compute."""
        reached = self.ended or not self.layers_to_extend(wanted)
        return reached and not any(self.missing_parts(shard, wanted) for shard in self.shards)


def save_manifest(folder: CacheFolder, manifest: Manifest) -> None:
    """Replace the manifest.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    plain = json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(manifest)}))
    write_text(folder.manifest, json.dumps({**plain, "checksum": digest(plain)}) + "\n")


def load_manifest(folder: CacheFolder) -> Manifest | None:
    """Read the manifest; None where there is none.

    Raises:
        SaeSweepError: if it is damaged, or of another version.
    """
    if not folder.manifest.exists():
        return None
    plain = read_json(folder.manifest)
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != VERSION:
        raise SaeSweepError(
            f"{folder.manifest} is of version {version}, and this is version {VERSION}: "
            f"`task=cache action=prune` removes it, or delete {folder.root}"
        )
    checksum = plain.pop("checksum", None)
    if checksum != digest(plain):
        raise SaeSweepError(
            f"{folder.manifest} is damaged (its checksum differs): `task=cache action=prune` removes it"
        )
    return _from_plain(plain)


def _from_plain(plain: dict[str, Any]) -> Manifest:
    del plain["version"]
    shards = tuple(_shard(shard) for shard in plain.pop("shards"))
    bad = {int(layer): BadStep(**found) for layer, found in plain.pop("bad").items()}
    wanted = {int(layer): steps for layer, steps in plain.pop("wanted").items()}
    return Manifest(**plain, shards=shards, bad=bad, wanted=wanted)


def _shard(plain: dict[str, Any]) -> Shard:
    files = {part: FileRecord(**record) for part, record in plain.pop("files").items()}
    return Shard(**plain, files=files)
