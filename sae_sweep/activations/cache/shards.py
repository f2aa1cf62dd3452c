"""Files of a shard: one tensor per file, written atomically, and verified by checksum at every read."""

import ctypes
import errno
import json
import mmap
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_128

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.activations.cache.manifest import FileRecord
from sae_sweep.config import SaeSweepError
from sae_sweep.store import regular, write_atomic

ALIGNMENT = 64
"""Alignment in bytes of torch's allocations, and of the data in a file."""
_NAME = "rows"
_CHUNK = 2**19
"""Bytes per read: few enough to be in the CPU's cache when their checksum is computed."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
_REMEDY = (
    "`task=cache action=verify` checks all files, `task=cache action=prune` removes damaged ones; "
    "the same command again then computes them anew"
)


class DamagedShardError(SaeSweepError):
    """A file of the cache is missing, or is not what was written."""

    def __init__(self, path: Path, problem: str, layer: int | None) -> None:
        super().__init__(f"{path} {problem}: {_REMEDY}")
        self.path = path
        self.layer = layer
        """Layer whose activations the file held; None for token ids."""


def write_part(folder: CacheFolder, number: int, part: str, rows: Tensor) -> FileRecord:
    """Write one part of a shard atomically and durably.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    name = folder.part(number, part)
    header, data = _header(rows), rows.cpu().contiguous().view(torch.uint8).numpy().data

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            file.write(data)

    write_atomic(folder.root / name, write)
    total = xxh3_128(header)
    total.update(data)
    return FileRecord(name, len(header) + data.nbytes, total.hexdigest())


def _header(rows: Tensor) -> bytes:
    """Return the header of a safetensors file, padded with spaces (which is valid) to align the data."""
    kind = next(kind for kind, dtype in _DTYPES.items() if dtype == rows.dtype)
    entry = {"dtype": kind, "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}
    text = json.dumps({_NAME: entry}).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_part(folder: CacheFolder, part: str, record: FileRecord, into: Tensor | None = None) -> Tensor:
    """Read one part of a shard, in the dtype on disk.

    Without `into`, the tensor is a memory map of the file: nothing is copied, and the pages stay valid while
    a view of the tensor exists, even if the file is removed or replaced. The mapped bytes are the verified
    ones, because files are never written in place. If another program truncates a mapped file, this process
    ends (SIGBUS), and the same command resumes.

    Args:
        folder: folder of the stream.
        part: a layer's number, or `tokens`.
        record: the file's record in the manifest.
        into: buffer to read into, at least as large as the file; the tensor is a view of it.

    Raises:
        DamagedShardError: if the file is missing or unreadable, or differs from what was written.
    """
    path = folder.root / record.file
    total = xxh3_128()
    try:
        with regular(path).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.bytes:
                raise _damaged(path, f"is damaged ({size:,} bytes instead of {record.bytes:,})", part)
            if into is None:
                whole = _map(file)
                total.update(whole.numpy().data)
            else:
                whole = into[:size]
                for chunk in _chunks(file, whole.numpy().data):
                    total.update(chunk)
    except FileNotFoundError:
        raise _damaged(path, "is missing", part) from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})", part) from error
    if total.hexdigest() != record.checksum:
        raise _damaged(path, "is damaged (its checksum differs)", part)
    return _tensor(whole)


def check_part(folder: CacheFolder, part: str, record: FileRecord) -> DamagedShardError | None:
    """Return the error that reading a file raises, or None."""
    try:
        read_part(folder, part, record)
    except DamagedShardError as error:
        return error
    return None


def _damaged(path: Path, problem: str, part: str) -> DamagedShardError:
    return DamagedShardError(path, problem, None if part == TOKENS else int(part))


def _map(file: FileIO) -> Tensor:
    """Map a file into memory, and load its pages."""
    # copy on write: torch needs writable memory, and the file must not change
    whole = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    # A page that cannot be read is an error here, and would be a SIGBUS later. `mmap.madvise` would hold the
    # GIL, and so block training, while the disk is read. A system without this call reads pages on first use.
    failed = sys.platform == "linux" and _madvise(whole.data_ptr(), whole.numel(), _POPULATE_READ) != 0
    if failed and ctypes.get_errno() == errno.EFAULT:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return whole


_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14 and later."""


def _chunks(file: FileIO, memory: memoryview) -> Iterator[memoryview]:
    """Read a file into `memory`, and yield each chunk after it is read."""
    place = 0
    while count := file.readinto(memory[place : place + _CHUNK]):
        yield memory[place : place + count]
        place += count


def _tensor(whole: Tensor) -> Tensor:
    """Return a view of the only tensor in a safetensors file: 8 bytes of length, a JSON header, then data."""
    start = 8 + int.from_bytes(whole[:8].numpy().tobytes(), "little")
    entry = json.loads(whole[8:start].numpy().tobytes())[_NAME]
    first, last = entry["data_offsets"]
    return whole[start + first : start + last].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
