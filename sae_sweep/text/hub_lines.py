"""Lines of JSON on the hub, plain or compressed, with one document each.

A compressed file can only be read from its start, so a place in it is found again by reading up to it.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from sae_sweep.config import SaeSweepError, first_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_CODECS = {"gz": "gzip", "zst": "zstd"}


def read_lines(shard: str, key: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield (line, from 0; the text that it holds, empty for a null) from a line on.

    Args:
        shard: a path, or an address on the hub.
        key: key of the text in each line.
        first: the first line to return.

    Raises:
        SaeSweepError: if a line is damaged, or lacks the key.
    """
    with _opened(shard) as file:
        for number, line in enumerate(file):
            if number >= first and line.strip():
                yield number, _text(line, key, f"{shard}, line {number + 1:,}")


def _text(line: bytes, key: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SaeSweepError(f"{where} is not JSON: {first_line(error)}") from error
    if not isinstance(row, dict) or key not in row:
        raise SaeSweepError(
            f"{where} has no key {key!r}: set dataset.text_key to the key that holds the text"
        )
    if not isinstance(row[key], str | None):
        raise SaeSweepError(f"{where}: {key!r} holds {type(row[key]).__name__}, not text")
    return (row[key] or "").encode(errors="replace").decode()


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    import pyarrow as pa

    with _raw(shard) as file:
        codec = _CODECS.get(shard.rpartition(".")[2])
        if codec is None:
            yield file
            return
        with pa.CompressedInputStream(file, codec) as plain:
            try:
                yield io.BufferedReader(plain)
            except OSError as error:
                if type(error) is OSError and error.errno is None:  # pyarrow's, not the network's
                    raise SaeSweepError(f"{shard} is damaged: {first_line(error)}") from error
                raise


def _raw(shard: str) -> Any:
    if not shard.startswith("hf://"):
        return open(shard, "rb")
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(shard, "rb")
