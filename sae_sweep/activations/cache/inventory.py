"""Lists, verifies and removes cached streams; what this program did not write stays where it is."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sae_sweep.activations.cache.layout import CacheFolder, cache_root, is_part
from sae_sweep.activations.cache.manifest import Manifest, Shard, load_manifest, save_manifest
from sae_sweep.activations.cache.shards import DamagedShardError, check_part
from sae_sweep.activations.cache.writer import remove_leftovers
from sae_sweep.config import SaeSweepError
from sae_sweep.store import Lease, disk_errors

_DIGEST = re.compile(r"[0-9a-f]{12}")
"""Name of a stream's folder."""
_MANIFESTS_BEGIN = b'{"version": "'


@dataclass(frozen=True)
class CacheEntry:
    """A stream in the cache."""

    folder: CacheFolder
    manifest: Manifest | None
    """None if it cannot be read."""
    problem: str | None
    """Why the manifest cannot be read."""
    bytes: int
    """Size of our files on disk, with unfinished ones."""
    used: float
    """Time of the last use, in seconds since 1970."""
    strangers: tuple[str, ...] = ()
    """Names of what is in the folder and not ours."""

    @property
    def state(self) -> str:
        """State in a few words, for a table."""
        owner = Lease(self.folder.root).owner
        if owner is not None:
            return f"being filled by {owner}"
        if self.manifest is None:
            return "unusable"
        return "complete" if self.manifest.covers(self.manifest.wanted) else "unfinished"


class Removed(NamedTuple):
    """Result of a removal."""

    bytes: int
    """Bytes freed."""
    kept: tuple[str, ...]
    """Names of what stays in the folder because it is not ours."""


def inventory(cache: Path, name: str | None = None) -> list[CacheEntry]:
    """Return all streams in the cache folder, or the one with a name that starts with `name`.

    Folders that are not recognisably ours, and links, are no streams.

    Raises:
        SaeSweepError: if there is no such stream, or several.
    """
    root = cache_root(cache)
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        folders = []
    except OSError as error:
        raise SaeSweepError(f"cannot read {root}: {error.strerror or error}") from error
    entries = [entry for path in folders if (entry := _inspect(CacheFolder(path))) is not None]
    if name is None:
        return entries
    chosen = [entry for entry in entries if entry.folder.name.startswith(name)]
    if len(chosen) != 1:
        have = ", ".join(entry.folder.name for entry in chosen or entries) or "none"
        raise SaeSweepError(f"stream={name}: not one of the streams in {root}: {have}")
    return chosen


def _inspect(folder: CacheFolder) -> CacheEntry | None:
    """The stream in a folder; None if nothing shows that the folder is ours."""
    manifest, problem = None, None
    try:
        files, strangers = folder.files()
        stats = {file.name: file.stat() for file in files}
        if folder.manifest.name in stats:
            manifest = load_manifest(folder)
    except OSError:  # unreadable, or removed meanwhile
        return None
    except SaeSweepError as error:
        problem = str(error)
    if manifest is None and not _is_ours(folder, list(stats), strangers):
        return None
    if manifest is None and problem is None:
        problem = f"{folder.root} has no manifest: `task=cache action=prune` removes it"
    size = sum(stat.st_size for stat in stats.values())
    used = stats.get(folder.used.name) or folder.root.stat()
    return CacheEntry(folder, manifest, problem, size, used.st_mtime, tuple(strangers))


def _is_ours(folder: CacheFolder, files: Sequence[str], strangers: Sequence[str]) -> bool:
    """Whether a folder without a readable manifest is a stream: by name and shards, or manifest."""
    if not _DIGEST.fullmatch(folder.name):
        return False
    return any(map(is_part, files)) or (not strangers and _begins_like_a_manifest(folder.manifest))


def _begins_like_a_manifest(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MANIFESTS_BEGIN)) == _MANIFESTS_BEGIN
    except OSError:
        return False


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


def prune(entry: CacheEntry) -> Removed | None:
    """Remove damaged and unfinished files of a stream, or all its files if its manifest cannot be read.

    Returns:
        What was removed; None if another process writes into the folder, which then stays as it is.

    Raises:
        SaeSweepError: if a file cannot be removed.
    """
    with Lease(entry.folder.root).if_free() as held:
        if not held:
            return None
        now = _inspect(entry.folder)
        if now is None:  # somebody removed it meanwhile
            return Removed(0, ())
        if now.manifest is None:
            return _delete(now.folder)
        damaged = {problem.path.name for problem in verify(now)}
        shards = tuple(_without(shard, damaged) for shard in now.manifest.shards)
        manifest = replace(now.manifest, shards=shards)
        save_manifest(now.folder, manifest)
        return Removed(remove_leftovers(now.folder, manifest), now.strangers)


def _without(shard: Shard, damaged: set[str]) -> Shard:
    files = {part: record for part, record in shard.files.items() if record.file not in damaged}
    return replace(shard, files=files)


def remove(entry: CacheEntry) -> Removed:
    """Delete all files of a stream.

    Raises:
        SaeSweepError: if another process writes into it, or a file cannot be removed.
    """
    with Lease(entry.folder.root).if_free() as held:
        if not held:
            raise SaeSweepError(f"{entry.folder.root} is {entry.state}: wait for it, or stop it")
        return _delete(entry.folder)


def _delete(folder: CacheFolder) -> Removed:
    """Delete our files, the manifest last, and the folder if it is empty then."""
    with disk_errors(folder.root):
        files, strangers = folder.files()
        freed = sum(file.stat().st_size for file in files)
        for file in sorted(files, key=lambda file: file.name == folder.manifest.name):
            os.unlink(file)
    with suppress(OSError):  # not empty
        folder.root.rmdir()
    return Removed(freed, tuple(strangers))
