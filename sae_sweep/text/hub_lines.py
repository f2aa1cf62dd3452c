"""Lines of JSON on the hub, plain or compressed, with one document each.

A compressed file can only be read from its start, so a place in it is found again by reading up to it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.text.rows import json_row

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
                yield number, json_row(line, key, f"{shard}, line {number + 1:,}").text or ""


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
