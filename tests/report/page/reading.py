"""Reads a page as its scripts do."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

Block = tuple[dict[str, Any], dict[str, np.ndarray]]


def unpacked(block: bytes) -> Block:
    """The header's keys, and the columns."""
    size = int.from_bytes(block[:4], "little")
    header = json.loads(block[4 : 4 + size])
    found = {
        name: np.frombuffer(block, dtype, count, 4 + size + place)
        for name, (dtype, place, count) in header.pop("columns").items()
    }
    return header, found


def data(page: Path, name: str) -> bytes:
    """The data of a name inside the page."""
    found = re.search(rf'id="data-{name}">([^<]*)<', page.read_text())
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1]))


def block(page: Path, name: str) -> Block:
    return unpacked(data(page, name))
