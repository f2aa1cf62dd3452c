"""Lists, verifies and removes cached streams."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sae_sweep.activations.cache.layout import CacheFolder, cache_root
from sae_sweep.activations.cache.manifest import Manifest, Shard, load_manifest, save_manifest
from sae_sweep.activations.cache.shards import DamagedShardError, check_part
from sae_sweep.activations.cache.writer import remove_leftovers
from sae_sweep.config import SaeSweepError
from sae_sweep.store import Lease


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache."""

    folder: CacheFolder
    manifest: Manifest | None
    """None if it cannot be read."""
    problem: str | None
    """Why the manifest cannot be read."""
    bytes: int
    """Size on disk, with unfinished files."""
    used: float
    """Time of the last use, in seconds since 1970."""

    @property
    def state(self) -> str:
        """State in a few words, for a table."""
        owner = Lease(self.folder.root).owner
        if owner is not None:
            return f"being filled by {owner}"
        if self.manifest is None:
            return "unusable"
        return "complete" if self.manifest.covers(self.manifest.wanted) else "unfinished"


def inventory(cache: Path, name: str | None = None) -> list[CacheEntry]:
    """Return all streams in the cache folder, or the one with a name that starts with `name`.

    Raises:
        SaeSweepError: if there is no such stream, or several.
    """
    root = cache_root(cache)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if name is not None:
        chosen = [path for path in folders if path.name.startswith(name)]
        if len(chosen) != 1:
            have = ", ".join(path.name for path in chosen or folders) or "none"
            raise SaeSweepError(f"stream={name}: not one of the streams in {root}: {have}")
        folders = chosen
    return [_inspect(CacheFolder(path)) for path in folders]


def _inspect(folder: CacheFolder) -> CacheEntry:
    files = [file.stat() for file in folder.root.iterdir() if file.is_file()]
    used = folder.used if folder.used.exists() else folder.root
    manifest, problem = None, None
    try:
        manifest = load_manifest(folder)
        if manifest is None:
            problem = f"{folder.root} has no manifest: `task=cache action=prune` removes it"
    except SaeSweepError as error:
        problem = str(error)
    return CacheEntry(folder, manifest, problem, sum(file.st_size for file in files), used.stat().st_mtime)


def verify(entry: CacheEntry) -> list[DamagedShardError]:
    """Read every file of a stream, and return an error for each that is damaged or missing."""
    if entry.manifest is None:
        return []
    checks = (
        check_part(entry.folder, part, record)
        for shard in entry.manifest.shards
        for part, record in shard.files.items()
    )
    return [problem for problem in checks if problem is not None]


def prune(entry: CacheEntry) -> int | None:
    """Remove damaged and unfinished files of a stream, or the whole stream if its manifest cannot be read.

    Returns:
        Bytes freed; None if another process writes into the folder, which then stays as it is.
    """
    with Lease(entry.folder.root).if_free() as held:
        if not held:
            return None
        now = _inspect(entry.folder)
        if now.manifest is None:
            shutil.rmtree(now.folder.root)
            return now.bytes
        damaged = {problem.path.name for problem in verify(now)}
        shards = tuple(_without(shard, damaged) for shard in now.manifest.shards)
        manifest = replace(now.manifest, shards=shards)
        save_manifest(now.folder, manifest)
        return remove_leftovers(now.folder, manifest)


def _without(shard: Shard, damaged: set[str]) -> Shard:
    files = {part: record for part, record in shard.files.items() if record.file not in damaged}
    return replace(shard, files=files)


def remove(entry: CacheEntry) -> int:
    """Delete a whole stream, and return the bytes freed.

    Raises:
        SaeSweepError: if another process writes into it.
    """
    with Lease(entry.folder.root).if_free() as held:
        if not held:
            raise SaeSweepError(f"{entry.folder.root} is {entry.state}: wait for it, or stop it")
        shutil.rmtree(entry.folder.root)
    return entry.bytes
