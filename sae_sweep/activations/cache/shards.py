"""The files of a shard: one tensor each, written whole, and never read without its checksum."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.activations.cache.manifest import FileRecord
from sae_sweep.config import SaeSweepError
from sae_sweep.storage import write_atomic

_NAME = "rows"
_CHUNK = 2**24
"""Bytes read at a time."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
_REMEDY = (
    "`task=cache action=verify` checks all files, `task=cache action=prune` removes damaged ones; "
    "the same command again then computes them anew"
)


class DamagedShardError(SaeSweepError):
    """A file of the cache is not what was written."""

    def __init__(self, path: Path, problem: str, layer: int | None) -> None:
        super().__init__(f"{path} {problem}: {_REMEDY}")
        self.path = path
        self.layer = layer
        """Whose activations it held; None for the token ids."""


def write_part(folder: CacheFolder, number: int, part: str, rows: Tensor) -> FileRecord:
    """Write one part of a shard, complete and flushed to the disk or not at all.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    name = folder.part(number, part)
    on_cpu = rows.cpu().contiguous()
    write_atomic(folder.root / name, lambda temporary: save_file({_NAME: on_cpu}, temporary))
    total = xxh3_128()
    for chunk in _chunks(folder.root / name, memoryview(bytearray(_CHUNK))):
        total.update(chunk)
    return FileRecord(name, (folder.root / name).stat().st_size, total.hexdigest())


def read_part(folder: CacheFolder, part: str, record: FileRecord, *, pinned: bool = False) -> Tensor:
    """Read one part of a shard, in the dtype on disk.

    Args:
        folder: of the stream.
        part: a layer's number, or `tokens`.
        record: what the manifest says of the file.
        pinned: into memory from which a GPU can copy while the CPU goes on.

    Raises:
        DamagedShardError: if the file is missing, or any of its bytes is not what was written.
    """
    whole = torch.empty(record.bytes, dtype=torch.uint8, pin_memory=pinned)
    _verify(folder, part, record, whole.numpy().data)
    return _tensor(whole)


def check_part(folder: CacheFolder, part: str, record: FileRecord) -> DamagedShardError | None:
    """What is wrong with a file, or None; takes little memory."""
    try:
        _verify(folder, part, record, None)
    except DamagedShardError as error:
        return error
    return None


def _verify(folder: CacheFolder, part: str, record: FileRecord, into: memoryview | None) -> None:
    """Compare a file with its record; keep its bytes where `into` is given."""
    path = folder.root / record.file
    total = xxh3_128()
    try:
        size = path.stat().st_size
        if size == record.bytes:
            for chunk in _chunks(path, memoryview(bytearray(_CHUNK)) if into is None else into):
                total.update(chunk)
    except FileNotFoundError:
        raise _damaged(path, "is missing", part) from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})", part) from error
    if size != record.bytes:
        raise _damaged(path, f"is damaged ({size:,} bytes instead of {record.bytes:,})", part)
    if total.hexdigest() != record.checksum:
        raise _damaged(path, "is damaged (its checksum differs)", part)


def _damaged(path: Path, problem: str, part: str) -> DamagedShardError:
    return DamagedShardError(path, problem, None if part == TOKENS else int(part))


def _chunks(path: Path, memory: memoryview) -> Iterator[memoryview]:
    """Read a file into `memory`, from its start again when that is full; yield each piece as it arrives."""
    place = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory[place : place + _CHUNK]):
            yield memory[place : place + count]
            place += count
            if place == len(memory):
                place = 0


def _tensor(whole: Tensor) -> Tensor:
    """View the one tensor in the bytes of a safetensors file: 8 bytes of length, a JSON header, the data."""
    start = 8 + int.from_bytes(whole[:8].numpy().tobytes(), "little")
    entry = json.loads(whole[8:start].numpy().tobytes())[_NAME]
    first, last = entry["data_offsets"]
    return whole[start + first : start + last].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
