"""How data lies inside the page: compressed JSON, and columns of numbers that a browser reads in place."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

_ALIGN = 8
_DTYPES = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "int32": "i4", "float32": "f4"}


def text(value: Any) -> str:
    """Any JSON value, compressed, as text that is safe inside HTML and JavaScript.

    NaN and infinities, which JSON lacks, become null.
    """
    return encoded(json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode())


def columns(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bytes:
    """Columns in one block: the length of a JSON header (4 bytes), the header, and the arrays, aligned.

    Args:
        arrays: flat, of the unsigned types, int32 or float32.
        meta: further keys of the header.
    """
    parts = [np.ascontiguousarray(one) for one in arrays.values()]
    sizes = [-(-part.nbytes // _ALIGN) * _ALIGN for part in parts]
    places = [0, *accumulate(sizes)]
    described = {
        name: [_DTYPES[part.dtype.name], place, part.size]
        for (name, part, place) in zip(arrays, parts, places, strict=False)
    }
    header = json.dumps(_plain({**meta, "columns": described}), ensure_ascii=False).encode()
    header += b" " * (-(len(header) + 4) % _ALIGN)
    body = b"".join(part.tobytes().ljust(size, b"\0") for part, size in zip(parts, sizes, strict=True))
    return len(header).to_bytes(4, "little") + header + body


def encoded(content: bytes) -> str:
    """Bytes as compressed base64; equal bytes give equal text."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 on as the smallest unsigned type that holds them."""
    most = int(values.max()) if values.size else 0
    return values.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32)


def shares(values: np.ndarray) -> np.ndarray:
    """Shares from 0 to 1 as uint8 in steps of 1/254; 255 stands for NaN."""
    known = ~np.isnan(values)
    return np.where(known, np.round(254 * np.where(known, values, 0).clip(0, 1)), 255).astype(np.uint8)


class Strings:
    """Texts by number from 1 on, each kept once; 0 stands for no text."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def numbers(self, texts: Sequence[str]) -> np.ndarray:
        """The number of each text."""
        known = self._numbers
        return np.array([known.setdefault(one, len(known) + 1) for one in texts], dtype=np.int64)

    @property
    def texts(self) -> list[str]:
        """The text of each number; that of 0 is empty."""
        return ["", *self._numbers]


def _plain(value: Any) -> Any:
    """The value without numbers that JSON lacks, and with NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
