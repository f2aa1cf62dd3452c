"""Text that a language model sampled: its blocks in the cache, which task=generate or a first run writes.

A block holds the documents that were sampled together, and is a function of the model's weights, the seed and
its number; a longer text has more of them. A text's manifest is written last: without it the text is not
finished. What samples is in `activations`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_sweep.config import ConfigError, FaithfulDataset, SaeSweepError, build, digest, expanded
from sae_sweep.store import disk_errors, is_present, read_record, unreadable, write_record
from sae_sweep.text.source import Place, TextSource, text_number

_VERSION = 1
"""Part of the folder's name; increase it whenever the same config gives other text."""
_REMEDY = "task=generate samples it again"


@dataclass(frozen=True)
class Block:
    """Documents that were sampled together."""

    weights: str
    """Fingerprint of the model that sampled."""
    documents: list[str]
    """Those that are not empty and that no earlier block has, in the order of sampling."""
    tokens: int
    """Sampled tokens of these documents, without BOS and end-of-text."""
    sampled: int
    """Tokens of all documents, also of those left out."""
    empty: int
    """Documents left out because they have no text: the model ended them at once."""
    repeated: int
    """Documents left out because their text is there already."""
    ended: int
    """Documents that the model ended itself, before the longest length."""
    same_tokens: int
    """Documents kept whose text is tokenised to the tokens that were sampled."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.documents).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """What a finished text consists of, and where it comes from."""

    weights: str
    """Fingerprint of the model that sampled."""
    blocks: list[str]
    """Digest of each block's documents."""
    documents: int
    tokens: int
    provenance: dict[str, Any] = field(default_factory=dict)
    """Config, versions, device and times."""


class FaithfulFiles:
    """The files of one sampled text; texts that differ only in their tokens have blocks in common."""

    def __init__(self, dataset: FaithfulDataset, cache: Path) -> None:
        local = expanded(dataset.path)
        where = str(local.resolve()) if local.exists() else dataset.path
        recipe = [_VERSION, where, dataset.model.hub_revision, dataset.seed, dataset.block, dataset.longest]
        self.folder = cache / "sampled" / digest(recipe)
        self._manifest = self.folder / f"manifest-{dataset.tokens}.json"

    def read_manifest(self) -> Manifest | None:
        """Read what the text consists of; None if it is not finished.

        Raises:
            SaeSweepError: if the file is damaged.
        """
        return _read(Manifest, self._manifest) if is_present(self._manifest) else None

    def read_block(self, number: int, known: str | None = None) -> Block | None:
        """Read a block; None if there is none of that number.

        Raises:
            SaeSweepError: if it is damaged, or not the one whose digest is `known`.
        """
        path = self._block(number)
        if not is_present(path):
            if known is not None:
                raise unreadable(path, "it is missing", _REMEDY)
            return None
        block: Block = _read(Block, path)
        if known not in (None, block.digest):
            raise unreadable(path, "it is of another text", _REMEDY)
        return block

    def write_block(self, number: int, block: Block) -> None:
        write_record(self._block(number), asdict(block))

    def write_manifest(self, manifest: Manifest) -> None:
        write_record(self._manifest, asdict(manifest))

    def unfinish(self) -> None:
        """Remove the manifest, before a block changes."""
        with disk_errors(self._manifest):
            self._manifest.unlink(missing_ok=True)

    def _block(self, number: int) -> Path:
        return self.folder / f"block-{number:06}.json"


class FaithfulText(TextSource):
    """Sampled text, with one block per unit; the text of a document decides whether it is held out."""

    def __init__(self, dataset: FaithfulDataset, cache: Path) -> None:
        super().__init__(f"dataset={dataset.name}", dataset.exhausted)
        self._files = FaithfulFiles(dataset, cache)
        self.manifest = _finished(dataset, self._files)
        for number, known in enumerate(self.manifest.blocks):  # damage is found before anything runs
            self._files.read_block(number, known)
        self._held_out_below = 2**64 // dataset.held_out_every
        found = self.manifest
        self.summary = f"{self.label}: {found.documents:,} documents of {found.tokens:,} sampled tokens"

    @staticmethod
    def fingerprint(dataset: FaithfulDataset, cache: Path) -> str:
        """Hash the documents."""
        return digest(_finished(dataset, FaithfulFiles(dataset, cache)).blocks)

    @property
    def units(self) -> int:
        return len(self.manifest.blocks)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        documents = self._documents(unit)
        for number in range(place or 0, len(documents)):
            if not self._is_held_out(documents[number]):
                yield documents[number], number + 1

    def held_out(self) -> Iterator[str]:
        for unit in range(self.units):
            yield from filter(self._is_held_out, self._documents(unit))

    def _documents(self, unit: int) -> list[str]:
        block = self._files.read_block(unit, self.manifest.blocks[unit])
        return block.documents if block else []

    def _is_held_out(self, text: str) -> bool:
        return text_number(text) < self._held_out_below


def _finished(dataset: FaithfulDataset, files: FaithfulFiles) -> Manifest:
    """The manifest of a finished text. Raises SaeSweepError, saying how to make one, if there is none."""
    manifest = files.read_manifest()
    if manifest is None:
        raise SaeSweepError(
            f"dataset={dataset.name}: {dataset.path} has not sampled its text yet (none in {files.folder}): "
            "type the same command with task=generate first"
        )
    return manifest


def _read(cls: type, path: Path) -> Any:
    try:
        return build(cls, read_record(path, _REMEDY))
    except ConfigError as error:
        raise unreadable(path, error, _REMEDY) from error
