"""Local text: .txt (one document per file), .jsonl and .parquet (one document per row)."""

import glob
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import FilesDataset, SaeSweepError, expanded, first_line
from sae_sweep.store import unreadable
from sae_sweep.text.source import Place, TextSource, text_number

SUFFIXES = (".txt", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 256
_EXACT_SPLIT_DOCUMENTS = 1000
"""Largest number of documents that are all read to hold out an exact share of them, at least one."""


class _Unit(NamedTuple):
    """A row of the index: a .txt file, a line of a .jsonl file, or a row group of a .parquet file."""

    file: int
    """Index of the file in the sorted list."""
    where: int
    """Byte offset of the line, or number of the row group; 0 for a .txt file."""
    size: int
    """Number of documents."""


class LocalFiles(TextSource):
    """Documents of local files.

    The constructor reads .txt and .jsonl files in full, so that damage is found before anything runs. The
    text of a document decides whether it is held out, so repeats are on the same side of the split.
    """

    def __init__(self, dataset: FilesDataset, _cache: Path) -> None:
        super().__init__(f"dataset.path={dataset.path}", dataset.exhausted)
        self._key = dataset.text_key
        self._paths = find_files(dataset.path)
        self._versions = [_version(path) for path in self._paths]
        self._index = self._build_index()
        self._held_out_below = self._held_out_limit(dataset.held_out_every)
        """Texts with a smaller `text_number` are held out."""

    @staticmethod
    def fingerprint(dataset: FilesDataset, _cache: Path) -> str:
        """Hash the contents of the files in their order; file names do not count."""
        whole = hashlib.sha256()
        for path in find_files(dataset.path):
            try:
                with path.open("rb") as file:
                    whole.update(path.suffix.encode() + hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise _unreadable(path, error) from error
        return whole.hexdigest()[:16]

    @property
    def units(self) -> int:
        return len(self._index)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        start = place or 0
        for done, text in enumerate(self._texts(self._unit(unit), start), start + 1):
            if not self._held_out(text):
                yield text, done

    def held_out(self) -> Iterator[str]:
        return (text for text in self._all_texts() if self._held_out(text))

    def _all_texts(self) -> Iterator[str]:
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
                f"{self.label} holds a single document, so none can be held out for evaluation: "
                "split it into several .txt files, or into the rows of a .jsonl file"
            )
        return numbers[-(-len(numbers) // every)]

    def _build_index(self) -> NDArray[np.int64]:
        scan = {".txt": _scan_text, ".jsonl": _scan_lines, ".parquet": _scan_row_groups}
        units = [
            (file, where, count)
            for file, path in enumerate(self._paths)
            for where, count in scan[path.suffix](path, self._key)
        ]
        return np.array(units, dtype=np.int64).reshape(-1, 3)

    def _texts(self, row: _Unit, start: int) -> Iterator[str]:
        """Yield the documents of a unit, from the one with index `start` on."""
        path = self._paths[row.file]
        if _version(path) != self._versions[row.file]:
            raise SaeSweepError(f"{path} was changed while it was read: put back what was there")
        if path.suffix == ".parquet":
            yield from islice(_row_group(path, row.where, self._key), start, None)
        elif start == 0:
            yield _read_text(path) if path.suffix == ".txt" else _read_line(path, row.where, self._key)


def find_files(pattern: str) -> list[Path]:
    """Return the text files that a file name, folder or glob matches, sorted.

    Raises:
        SaeSweepError: if there are none, or `pattern` is a single file of another kind.
    """
    path = expanded(pattern)
    known = ", ".join(SUFFIXES)
    if path.is_file():
        found = [path]
        if path.suffix not in SUFFIXES:
            raise SaeSweepError(f"dataset.path={pattern}: {path.suffix or 'no suffix'} is not one of {known}")
    elif path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES]
    elif glob.has_magic(pattern):
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = [file for file in matches if file.is_file() and file.suffix in SUFFIXES]
    else:
        raise SaeSweepError(f"dataset.path={pattern}: no such file or folder")
    if not found:
        raise SaeSweepError(f"dataset.path={pattern}: no {known} file there")
    return sorted(found)


def _scan_text(path: Path, _key: str) -> list[tuple[int, int]]:
    if not _read_text(path).strip():
        raise SaeSweepError(f"{path} holds no text: fill it, or leave it out of dataset.path")
    return [(0, 1)]


def _scan_lines(path: Path, key: str) -> list[tuple[int, int]]:
    found, offset = [], 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and _text_of_line(line, key, f"{path}, line {number}").strip():
                    found.append((offset, 1))
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not found:
        raise SaeSweepError(f"{path} holds no text: fill it, or leave it out of dataset.path")
    return found


def _scan_row_groups(path: Path, key: str) -> list[tuple[int, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata
            kind = file.schema_arrow.field(key).type if key in names else None
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    if kind is None:
        raise SaeSweepError(f"{path} has no column {key!r}: set dataset.text_key, to {' or '.join(names)}")
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SaeSweepError(f"{path}: column {key!r} holds {kind}, not text: set dataset.text_key to another")
    if metadata.num_rows == 0:
        raise SaeSweepError(f"{path} has no rows: leave it out of dataset.path")
    return [(group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]


def _row_group(path: Path, group: int, key: str) -> Iterator[str]:
    """Yield the texts of a row group, with an empty string for a null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[key]):
                for text in batch.column(0).to_pylist():
                    yield text or ""
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _read_line(path: Path, offset: int, key: str) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _text_of_line(file.readline(), key, f"{path}, byte {offset}")
    except OSError as error:
        raise _unreadable(path, error) from error


def _text_of_line(line: bytes, key: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SaeSweepError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(row, dict) or key not in row:
        raise SaeSweepError(f"{where}: no key {key!r}: set dataset.text_key to the key that holds the text")
    if not isinstance(row[key], str):
        raise SaeSweepError(f"{where}: {key!r} holds {type(row[key]).__name__}, not text")
    return row[key]


def _version(path: Path) -> tuple[int, int, int]:
    """What differs once a file is written again or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> SaeSweepError:
    return unreadable(path, error if isinstance(error, OSError) else first_line(error))
