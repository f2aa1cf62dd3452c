"""Parquet files with a checksum of every byte, which is kept in their own metadata.

Parquet's page checksums would cover neither the schema nor the number of rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from xxhash import xxh3_128

from sae_sweep.config import first_line
from sae_sweep.store import regular, unreadable, write_bytes

_MARK = b"sae_sweep:xxh3-128:"
"""In front of the checksum; metadata is at the end of a file, behind all columns and their names."""
_BLANK = b"0" * 32
"""In the place of the checksum while it is computed."""


def write_parquet(path: Path, table: pyarrow.Table) -> Path:
    """Write a table.

    Raises:
        SaeSweepError: if the file cannot be written; none is left incomplete.
    """
    sink = pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"checksum": (_MARK + _BLANK).decode()})
    before, _, after = _parts(sink.getvalue().to_pybytes())
    whole = before + _checksum(before, after) + after
    write_bytes(path, whole)
    return path


def read_parquet(
    path: Path, columns: Sequence[str] | None, remedy: str, *, old: bool = True
) -> pyarrow.Table:
    """Read a table that `write_parquet` wrote.

    Args:
        path: of the file.
        columns: the ones to read; None: all.
        remedy: what to do if it is damaged.
        old: whether an earlier version wrote such files, without a checksum.

    Raises:
        SaeSweepError: one line with the file and the `remedy`, if it is missing or damaged.
    """
    try:
        whole = regular(path).read_bytes()
        before, checksum, after = _parts(whole)
        if (checksum or not old) and checksum != _checksum(before, after):
            raise ValueError("its checksum differs")
        return parquet.read_table(pyarrow.BufferReader(whole), columns=columns and list(columns))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        why = error if isinstance(error, OSError) else first_line(error)
        raise unreadable(path, why, remedy) from error


def plain_column(values: Sequence[Any]) -> pyarrow.Array:
    """An Arrow column; values of different types are text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1 or kinds - {str, bool, int, float}:
        values = [None if value is None else str(value) for value in values]
    return pyarrow.array(values, None if kinds else pyarrow.string())


def _parts(whole: bytes) -> tuple[bytes, bytes, bytes]:
    """The bytes before the checksum, the checksum (empty without one), and the bytes after it."""
    found = whole.rfind(_MARK)
    start = found + len(_MARK) if found >= 0 else len(whole)
    return whole[:start], whole[start : start + len(_BLANK)], whole[start + len(_BLANK) :]


def _checksum(before: bytes, after: bytes) -> bytes:
    return xxh3_128(before + _BLANK + after).hexdigest().encode()
