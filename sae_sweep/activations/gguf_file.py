"""Checks the header of a .gguf file: its reader believes every count, and would loop or fill the memory."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size of the values of each type: integers, floats and bools."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_VERSIONS = (2, 3)
_DEEPEST = 4
"""Arrays inside arrays."""


def check_gguf(path: Path) -> None:
    """Raise ValueError if the header is damaged, or its number of blocks is not that of the tensors."""
    with path.open("rb") as file:
        header = _Header(file, path.stat().st_size)
        if header.read(4) != b"GGUF" or header.uint32() not in _VERSIONS:
            raise ValueError("it is no GGUF file of version 2 or 3")
        tensors, fields = header.uint64(), header.uint64()
        said = [count for _ in range(fields) if (count := header.block_count()) is not None]
        blocks = [block for _ in range(tensors) if (block := header.block()) is not None]
    if blocks and said and said != [max(blocks) + 1]:
        raise ValueError(
            f"its block_count is {', '.join(map(str, said))}, and it has {max(blocks) + 1} blocks"
        )


class _Header:
    """Reads the values of a header in their order; ValueError where they exceed the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        self._shrink(size)
        return self._file.read(size)

    def _shrink(self, size: int) -> None:
        if size > self._left:
            raise ValueError("it is cut, or its header is damaged")
        self._left -= size

    def uint32(self) -> int:
        return int(struct.unpack("<I", self.read(4))[0])

    def uint64(self) -> int:
        return int(struct.unpack("<Q", self.read(8))[0])

    def text(self) -> bytes:
        return self.read(self.uint64())

    def block_count(self) -> int | None:
        """The value of a field, if it is the number of blocks."""
        key, kind = self.text(), self.uint32()
        if key.endswith(b".block_count") and kind == _UINT32:
            return self.uint32()
        self._skip(kind)
        return None

    def block(self) -> int | None:
        """The number of the block that a tensor belongs to."""
        name = self.text()
        self.read(8 * self.uint32())  # its shape
        self.read(4 + 8)  # its type, and its place in the file
        found = re.match(rb"blk\.(\d{1,6})\.", name)
        return int(found[1]) if found else None

    def _skip(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY and depth < _DEEPEST:
            item, count = self.uint32(), self.uint64()
            if item in _BYTES:
                self._shrink(count * _BYTES[item])
                self._file.seek(count * _BYTES[item], 1)
            else:
                for _ in range(count):
                    self._skip(item, depth + 1)
        elif kind in _BYTES:
            self.read(_BYTES[kind])
        else:
            raise ValueError(f"its header is damaged (type {kind})")
