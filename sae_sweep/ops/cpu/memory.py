"""Large results in memory that is used again: to get fresh pages costs as much as to fill them."""

import weakref

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_LEAST_BYTES = 1 << 20
"""Below, the allocator does the same by itself."""
_IDLE_BLOCKS = 4
_LINE = 16
"""Numbers of a line of the cache, on which every result begins."""


class Recycled:
    """Uninitialised float32 matrices. Its block is idle when the last tensor that lies in it is gone."""

    def __init__(self) -> None:
        self._idle: list[np.ndarray] = []

    def empty(self, rows: int, width: int) -> Float[Tensor, "rows width"]:
        size = rows * width
        if 4 * size < _LEAST_BYTES:
            return torch.empty(rows, width)
        block = min((b for b in self._idle if size <= len(b) <= 2 * size), key=len, default=None)
        if block is None:
            block = _aligned(size)
        # by identity: a collection of garbage may give blocks back between any two of these lines
        self._idle = [idle for idle in self._idle if idle is not block]
        matrix = block[:size].reshape(rows, width)
        # a tensor keeps this very array alive, and so do all that share its memory
        weakref.finalize(matrix, self._give_back, block).atexit = False
        return torch.from_numpy(matrix)

    def _give_back(self, block: np.ndarray) -> None:
        self._idle = [block, *self._idle[: _IDLE_BLOCKS - 1]]


def _aligned(size: int) -> np.ndarray:
    block = np.empty(size + _LINE, dtype=np.float32)
    first = -(block.ctypes.data // 4) % _LINE
    return block[first : first + size]
