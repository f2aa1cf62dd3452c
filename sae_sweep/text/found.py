"""Finds the files of a local text: what a path, folder or glob names, each file once, in a fixed order."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sae_sweep.config import SaeSweepError
from sae_sweep.store import unreadable

SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst")
_KNOWN = ".txt, .jsonl, .parquet"
_PACKED = ".txt and .jsonl also as .gz and .zst"

_OTHER = "other files"
EMPTY = "files without text"


class Found(NamedTuple):
    """Text files, and how much else there was."""

    paths: list[Path]
    """Sorted; no two of them lead to the same file."""
    left_out: Counter[str]
    """Number of files, folders and links that are not read, by reason."""


def suffix(path: Path) -> str | None:
    """Return the one of `SUFFIXES` that a file name ends with, in any case; None for all other files."""
    name = path.name.lower()
    return next((known for known in SUFFIXES if name.endswith(known)), None)


def find_files(pattern: str, key: str = "dataset.path") -> Found:
    """Return the text files that a file name, folder or glob matches.

    Empty files are left out, and hidden files and folders, unless `pattern` itself names them. Links are
    followed. Errors name `pattern` as the value of `key`.

    Raises:
        SaeSweepError: if there are none, a folder cannot be read, or `pattern` is a file of another kind.
    """
    try:
        return _find(pattern, key)
    except OSError as error:
        raise unreadable(Path(error.filename or pattern), error) from error


def _find(pattern: str, key: str) -> Found:
    where, left_out = os.path.expanduser(pattern), Counter[str]()
    if os.path.isfile(where):
        if suffix(Path(where)) is None:
            kind = Path(where).suffix or "no suffix"
            raise SaeSweepError(f"{key}={pattern}: {kind} is not one of {_KNOWN} ({_PACKED})")
        return Found([Path(where)], left_out)
    if os.path.isdir(where):
        there = [file for _, files in _folders(Path(where), left_out) for file in files]
    elif glob.has_magic(where):
        there = [path for path in _matches(where, left_out) if not path.is_dir()]
    else:
        why = "neither a file nor a folder" if os.path.exists(where) else "no such file or folder"
        raise SaeSweepError(f"{key}={pattern}: {why}")
    found = _distinct([path for path in there if _is_text(path, left_out)], left_out)
    if not found:
        hint = "; text under another ending is read once it is named .txt" * bool(left_out[_OTHER])
        words = "".join(f"; {reason} ({number:,})" for reason, number in left_out.items())
        raise SaeSweepError(f"{key}={pattern}: no {_KNOWN} file there ({_PACKED}){words}{hint}")
    return Found(found, left_out)


def _is_text(path: Path, left_out: Counter[str]) -> bool:
    """Whether a file is to be read; if not, it is counted. A text file that was lost is an error."""
    if path.is_file():
        reason = _OTHER if not suffix(path) else None if path.stat().st_size else EMPTY
    elif not path.is_symlink():
        reason = "pipes and devices"
    elif suffix(path):
        raise unreadable(path, f"it links to {os.readlink(path)}, which is not there", "put it back")
    else:
        reason = "links to nothing"
    left_out.update([reason] if reason else [])
    return reason is None


def _distinct(paths: Sequence[Path], left_out: Counter[str]) -> list[Path]:
    """Return the paths sorted, without further ones to the same file; paths without links come first."""
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    real = {
        path: os.path.realpath(path) if path.is_symlink() else os.path.join(folders[path.parent], path.name)
        for path in paths
    }
    first: dict[str, Path] = {}
    for path in sorted(real, key=lambda path: (real[path] != os.path.abspath(path), path)):
        first.setdefault(real[path], path)
    if repeated := len(real) - len(first):
        left_out["further links to a file"] += repeated
    return sorted(first.values())


def _folders(root: Path, left_out: Counter[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a folder and those below it, with their files: each folder once, links after all others."""
    folders, links, seen = [root], list[Path](), set[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        files = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                left_out["hidden"] += 1
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            else:
                files.append(path)
        yield folder, files


def _matches(pattern: str, left_out: Counter[str]) -> Iterator[Path]:
    """Yield what a glob matches; `**` enters each folder once, where Python's own never leaves circles."""
    before, anywhere, after = (f"/{pattern}/").partition("/**/")
    if not anywhere:
        yield from map(Path, glob.glob(pattern))
        return
    base, rest = before[1:], after.rstrip("/")
    start = "/" if pattern.startswith("/") and not base.strip("/") else base or "."
    roots = glob.glob(start) if glob.has_magic(start) else [start]
    for root in sorted(filter(os.path.isdir, roots)):
        for folder, files in _folders(Path(root), left_out):
            yield from _matches(os.path.join(glob.escape(str(folder)), rest), left_out) if rest else files
