"""Local text: a file, a folder or a glob of .txt, .jsonl and .parquet, also compressed."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import FilesDataset, SaeSweepError
from sae_sweep.store import unreadable
from sae_sweep.text.formats import format_of, opened, readable
from sae_sweep.text.found import Found, find_files, suffix
from sae_sweep.text.rows import Tally
from sae_sweep.text.source import Place, TextSource, text_number

_REREAD = b"without byte-order marks and blank rows"
"""Part of the fingerprint where version 0.1.0 read them as text."""
_TEXT_KEY = FilesDataset.text_key
_EXACT_SPLIT_DOCUMENTS = 1000
"""Largest number of documents that are all read to hold out an exact share of them, at least one."""


_Version = tuple[int, int, int]
"""What differs once a file is written again or replaced."""


class _Unit(NamedTuple):
    """A row of the index: a .txt or compressed file, a line of .jsonl, or a row group of .parquet."""

    file: int
    """Index of the file in the sorted list."""
    where: int
    """Byte offset of the line, or number of the row group; 0 for a .txt or compressed file."""
    size: int
    """Number of documents; in .parquet, of rows."""


class LocalFiles(TextSource):
    """Documents of local files.

    The constructor reads all files in full, so that damage is found before anything runs. The text of a
    document decides whether it is held out, so repeats are on the same side of the split.
    """

    def __init__(self, dataset: FilesDataset, _cache: Path) -> None:
        super().__init__(f"dataset.path={dataset.path}", dataset.exhausted)
        self._key = dataset.text_key
        found = find_files(dataset.path)
        self._paths = found.paths
        self._versions = [_version(path) for path in self._paths]
        tally = Tally()
        self._index = self._build_index(tally)
        self.summary = f"{self.label}: {_summary(found, tally)}"
        if not tally.documents:
            raise SaeSweepError(f"{self.summary}: there is no text to read")
        self._held_out_below = self._held_out_limit(dataset.held_out_every)
        """Texts with a smaller `text_number` are held out."""

    @staticmethod
    def fingerprint(dataset: FilesDataset, _cache: Path) -> str:
        """Hash the contents of the files in their order; their names do not count.

        Raises:
            SaeSweepError: if a file holds no text.
        """
        whole = hashlib.sha256()
        for path in find_files(dataset.path).paths:
            _, tally = _scan(path, _version(path), dataset.text_key)
            whole.update((suffix(path) or "").encode() + _digest(path) + (_REREAD if tally.reread else b""))
        return whole.hexdigest()[:16]

    @property
    def units(self) -> int:
        return len(self._index)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        start = place or 0
        for done, text in enumerate(self._texts(self._unit(unit), start), start + 1):
            if text and not self._held_out(text):
                yield text, done

    def held_out(self) -> Iterator[str]:
        return (text for text in self._all_texts() if text and self._held_out(text))

    def _all_texts(self) -> Iterator[str | None]:
        for unit in range(self.units):
            yield from self._texts(self._unit(unit), 0)

    def _unit(self, unit: int) -> _Unit:
        return _Unit(*self._index[unit].tolist())

    def _held_out(self, text: str) -> bool:
        return text_number(text) < self._held_out_below

    def _held_out_limit(self, every: int) -> int:
        """Return the limit that holds out one text in `every`: exactly if there are few, else on average."""
        if self._index[:, 2].sum() > _EXACT_SPLIT_DOCUMENTS:
            return 2**64 // every
        numbers = sorted({text_number(text) for text in self._all_texts() if text})
        if len(numbers) < 2:
            raise SaeSweepError(
                f"{self.label} holds a single distinct document, so none can be held out for evaluation: "
                "split it into several .txt files, or into the rows of a .jsonl file"
            )
        return numbers[-(-len(numbers) // every)]

    def _build_index(self, total: Tally) -> NDArray[np.int64]:
        parts = []
        for path, version in zip(self._paths, self._versions, strict=True):
            pieces, tally = _scan(path, version, self._key)
            total.add_file(path, tally)
            parts.append(pieces)
        files = np.repeat(np.arange(len(parts)), [len(pieces) for pieces in parts])
        return np.insert(np.concatenate(parts), 0, files, axis=1)

    def _texts(self, unit: _Unit, start: int) -> Iterator[str | None]:
        """Yield the rows of a unit, from the one with index `start` on."""
        path = self._paths[unit.file]
        if _version(path) != self._versions[unit.file]:
            raise SaeSweepError(f"{path} was changed while it was read: put back what was there")
        for row in format_of(path).rows(path, unit.where, start, self._key):
            yield row.text


def read_documents(pattern: str, key: str) -> list[str]:
    """All documents of local files, for the key of a config that names them.

    Raises:
        SaeSweepError: if there are no files, or no text in them.
    """
    documents: list[str] = []
    total = Tally()
    for path in find_files(pattern, key).paths:
        pieces, tally = _scan(path, _version(path), _TEXT_KEY)
        total.add_file(path, tally, key)
        for where, _ in pieces:
            rows = format_of(path).rows(path, int(where), 0, _TEXT_KEY)
            documents += [row.text for row in rows if row.text]
    if documents:
        return documents
    raise SaeSweepError(f"{key}={pattern}: there is no text to read")


@functools.lru_cache(maxsize=2**17)
def _scan(path: Path, _version: _Version, key: str) -> tuple[NDArray[np.int64], Tally]:
    """Return a file's pieces, [n, 2], and what it holds; a file is read once for all groups of a command."""
    tally = Tally()
    pieces = format_of(path).pieces(path, key, tally)
    return np.array(pieces, dtype=np.int64).reshape(-1, 2), tally


def _summary(found: Found, tally: Tally) -> str:
    """Say in one line what is read, and what is not and why."""
    files, documents = len(found.paths), tally.documents
    line = f"{files:,} file{'s' * (files != 1)}, {documents:,} document{'s' * (documents != 1)}"
    skipped = tally.skipped + found.left_out
    if skipped:
        line += f"; skipped: {', '.join(f'{reason} ({number:,})' for reason, number in skipped.items())}"
    if tally.replaced:
        line += f"; invalid characters replaced: {tally.replaced:,}"
    return line


def _digest(path: Path) -> bytes:
    """Hash what a file holds: compressing it anew changes nothing."""
    with readable(path), opened(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _version(path: Path) -> _Version:
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return found.st_ino, found.st_size, found.st_mtime_ns
