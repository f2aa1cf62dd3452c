"""Formats of local text: a document in a .txt file, or in each line of .jsonl, or each row of .parquet.

Each format can find the pieces of a file that are read on their own, and read one. A compressed file is one
piece, for it can only be read from its start.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.store import unreadable
from sae_sweep.text.found import suffix
from sae_sweep.text.rows import Row, Tally, column_row, json_row, text_row, token_ids

_ROWS_AT_ONCE = 256
_CODECS = {".gz": "gzip", ".zst": "zstd"}

Pieces = list[tuple[int, int]]
"""The pieces of a file: where each begins, and how many documents it holds."""


class Format(NamedTuple):
    """How a kind of file is read."""

    pieces: Callable[[Path, str, Tally], Pieces]
    """Function from a file, the key of the text and a tally, which it fills, to the file's pieces."""
    rows: Callable[[Path, int, int, str], Iterator[Row]]
    """Function from a file, a piece, a row in it and the key of the text to the rows from there on."""


def format_of(path: Path) -> Format:
    """Return how a file is read that `find_files` has found."""
    return _FORMATS[suffix(path) or ""]


def _text_pieces(path: Path, _key: str, tally: Tally) -> Pieces:
    return [(0, 1)] if tally.add(_text_row(path)) else []


def _text_rows(path: Path, _where: int, start: int, _key: str) -> Iterator[Row]:
    if start == 0:
        yield _text_row(path)


def _text_row(path: Path) -> Row:
    with readable(path), opened(path) as file:
        return text_row(file.read())


def _line_pieces(path: Path, key: str, tally: Tally) -> Pieces:
    found, offset = [], 0
    for number, line in _lines(path):
        if tally.add(json_row(line, key, f"{path}, line {number:,}")):
            found.append((offset, 1))
        offset += len(line)
    return found


def _line_rows(path: Path, where: int, start: int, key: str) -> Iterator[Row]:
    if start == 0:
        with readable(path), path.open("rb") as file:
            file.seek(where)
            line = file.readline()
        yield json_row(line, key, f"{path}, byte {where:,}")


def _packed_pieces(path: Path, key: str, tally: Tally) -> Pieces:
    found = _line_pieces(path, key, tally)
    return [(0, len(found))] if found else []


def _packed_rows(path: Path, _where: int, start: int, key: str) -> Iterator[Row]:
    for number, line in islice(_lines(path), start, None):
        yield json_row(line, key, f"{path}, line {number:,}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, numbered from 1."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except OSError as error:
        raise unreadable(Path(f"{path}, after line {number:,}") if number else path, error) from error


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file that may be compressed; what is wrong with its content is an OSError."""
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow as pa

    with path.open("rb") as file, pa.CompressedInputStream(file, codec) as plain:
        yield io.BufferedReader(plain)


def _row_groups(path: Path, key: str, tally: Tally) -> Pieces:
    with _parquet(path) as file:
        _check_column(path, file.schema_arrow, key)
        groups = range(file.metadata.num_row_groups)
        for group in groups:
            for column in _columns(file, group, key):
                for row in _rows_of(column):
                    tally.add(row)
        return [(group, file.metadata.row_group(group).num_rows) for group in groups]


def _row_group(path: Path, group: int, start: int, key: str) -> Iterator[Row]:
    with _parquet(path) as file:
        rows = (row for column in _columns(file, group, key) for row in _rows_of(column))
        yield from islice(rows, start, None)


def _columns(file: Any, group: int, key: str) -> Iterator[Any]:
    """Yield the text of a row group in parts: Arrow arrays without dictionary and extension types."""
    import pyarrow as pa

    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[key]):
        column = batch.column(0)
        while isinstance(column, pa.ExtensionArray | pa.DictionaryArray):
            is_dictionary = isinstance(column, pa.DictionaryArray)
            column = column.dictionary_decode() if is_dictionary else column.storage
        yield column


def _rows_of(column: Any) -> Iterator[Row]:
    import pyarrow as pa

    return map(column_row, column.cast(pa.large_binary()).to_pylist())


def _check_column(path: Path, schema: Any, key: str) -> None:
    if key not in schema.names:
        raise no_column(str(path), schema, key)
    if schema.names.count(key) > 1:
        raise SaeSweepError(
            f"{path} has several columns {key!r}: rename all but one, or set dataset.text_key"
        )
    kind = schema.field(key).type
    if _holds_ids(kind):
        raise token_ids(str(path), key)
    if not _holds_text(kind):
        raise SaeSweepError(f"{path}: column {key!r} holds {kind}, not text: set dataset.text_key to another")


def no_column(where: str, schema: Any, key: str) -> SaeSweepError:
    """An error for a table without the column of `dataset.text_key`, naming those that hold text."""
    names = [name for name, kind in zip(schema.names, schema.types, strict=True) if _holds_text(kind)]
    instead = f"set dataset.text_key to {' or '.join(names)}" if names else "no other holds text either"
    if not names and any(map(_holds_ids, schema.types)):
        instead = "it holds token ids, which mean nothing to another tokenizer: decode them"
    return SaeSweepError(f"{where} has no column {key!r}: {instead}")


def _holds_ids(kind: Any) -> bool:
    """Whether an Arrow type is that of lists of whole numbers."""
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_integer(kind.value_type))


def _holds_text(kind: Any) -> bool:
    """Whether an Arrow type is text in any of its forms, or that of a column in which every row is null."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType | pa.DictionaryType):
        kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind.storage_type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in text)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as file:
        yield file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise errors of the disk, and of pyarrow about a damaged file, as one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error if isinstance(error, OSError) else first_line(error)) from error


_FORMATS = {
    ".txt": Format(_text_pieces, _text_rows),
    ".jsonl": Format(_line_pieces, _line_rows),
    ".parquet": Format(_row_groups, _row_group),
    **dict.fromkeys((".txt.gz", ".txt.zst"), Format(_text_pieces, _text_rows)),
    **dict.fromkeys((".jsonl.gz", ".jsonl.zst"), Format(_packed_pieces, _packed_rows)),
}
