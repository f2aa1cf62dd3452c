"""The manifest of a cached stream: its complete shards, with a checksum of each file."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.config import ConfigError, SaeSweepError, build, digest, first_line, is_count
from sae_sweep.config.run import NUMERICS_VERSION
from sae_sweep.store import read_json, write_text

VERSION = f"2.{NUMERICS_VERSION}"
"""Version of the layout, and of how a config determines activations."""
_REMEDY = "`task=cache action=prune` removes it"

Position = dict[str, Any]
"""A position from `ActivationStream.position`."""


@dataclass(frozen=True)
class FileRecord:
    """A file of a shard."""

    file: str
    """Name in the stream's folder."""
    bytes: int
    checksum: str
    """XXH3-128 of the file, in hex."""


@dataclass(frozen=True)
class Shard:
    """A buffer of the stream on disk: full batches in training order."""

    number: int
    first_step: int
    steps: int
    position: Position
    """Position of the stream at the start of the shard."""
    epochs: float
    """Times the text has been read, up to the end of the shard."""
    files: Mapping[str, FileRecord]
    """Files by part: a layer's number, or `tokens`."""


@dataclass(frozen=True)
class BadStep:
    """First step at which a layer's activations cannot be trained on; later shards do not cache the layer."""

    step: int
    problem: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a stream's folder; the file is replaced after each complete shard."""

    stream: Mapping[str, Any]
    """The stream's identity, from `cache_identity`."""
    d_in: int
    dtype: str
    batch: int
    """Rows per step."""
    following: Position
    """Position of the stream after the last shard."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the command that made the stream calls its `model` and `dataset`; for tables only."""
    shards: tuple[Shard, ...] = ()
    ended: bool = False
    """Whether the text ends after the last shard (`dataset.exhausted=stop`)."""
    bad: Mapping[int, BadStep] = field(default_factory=dict)
    """First bad step of each layer that has one."""
    wanted: Mapping[int, int] = field(default_factory=dict)
    """Largest number of steps that any command requested, by layer."""

    @property
    def steps(self) -> int:
        """Number of steps in all shards."""
        return int(self.following["step"])

    def missing_parts(self, shard: Shard, wanted: Mapping[int, int]) -> list[str]:
        """Return the parts of a shard that `wanted` (layer -> steps) needs and that are not cached."""
        layers = [
            layer
            for layer, steps in sorted(wanted.items())
            if shard.first_step < steps and self.usable(layer, shard.first_step)
        ]
        parts = [*map(str, layers), TOKENS] if layers else []
        return [part for part in parts if part not in shard.files]

    def usable(self, layer: int, step: int) -> bool:
        """Return whether runs can train on a layer up to `step`: no run continues after a bad step."""
        return layer not in self.bad or self.bad[layer].step >= step

    def layers_to_extend(self, wanted: Mapping[int, int]) -> list[int]:
        """Return the layers that need more shards."""
        return [
            layer for layer, steps in sorted(wanted.items()) if self.steps < steps and layer not in self.bad
        ]

    def covers(self, wanted: Mapping[int, int]) -> bool:
        """Return whether everything that `wanted` needs is cached."""
        reached = self.ended or not self.layers_to_extend(wanted)
        return reached and not any(self.missing_parts(shard, wanted) for shard in self.shards)


def save_manifest(folder: CacheFolder, manifest: Manifest) -> None:
    """Write the manifest, with a checksum.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    content = json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(manifest)}))
    write_text(folder.manifest, json.dumps({**content, "checksum": digest(content)}) + "\n")


def load_manifest(folder: CacheFolder) -> Manifest | None:
    """Read the manifest; None if there is none.

    Raises:
        SaeSweepError: if it is damaged, or of another version.
    """
    if not folder.manifest.exists():
        return None
    content = read_json(folder.manifest, _REMEDY)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise SaeSweepError(
            f"{folder.manifest} is of version {str(version)[:20]!r}, and this is version {VERSION}: "
            f"{_REMEDY}, or delete {folder.root}"
        )
    try:
        if content.pop("checksum", None) != digest(content):
            raise ValueError("its checksum differs")
        manifest = _from_json(content)
        _check(manifest, folder)
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SaeSweepError(f"{folder.manifest} is damaged ({first_line(error)}): {_REMEDY}") from error
    return manifest


def _from_json(content: dict[str, Any]) -> Manifest:
    del content["version"]
    for key in ("bad", "wanted"):
        content[key] = {int(layer): value for layer, value in content[key].items()}
    manifest: Manifest = build(Manifest, content)
    return manifest


def _check(manifest: Manifest, folder: CacheFolder) -> None:
    """Raise ValueError unless the shards follow each other, and all files are of this folder."""
    _counts(manifest.d_in, manifest.batch, least=1)
    _counts(*manifest.wanted.values(), *(bad.step for bad in manifest.bad.values()))
    steps = 0
    for number, shard in enumerate(manifest.shards):
        _counts(shard.steps, *(record.bytes for record in shard.files.values()), least=1)
        if (shard.number, shard.first_step, shard.position["step"]) != (number, steps, steps):
            raise ValueError(f"shard {number} does not follow the one before it")
        for part, record in shard.files.items():
            if record.file != folder.part(number, part):
                raise ValueError(f"shard {number} names the file {record.file!r}")
        steps += shard.steps
    if manifest.steps != steps:
        raise ValueError("its shards do not reach its end")


def _counts(*values: Any, least: int = 0) -> None:
    for value in values:
        if not is_count(value) or value < least:
            raise ValueError(f"{str(value)[:20]!r} is no number of it")
