"""Reuses the memory of large results: fresh pages from the system cost as much time as filling them."""

import weakref

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_MIN_BYTES = 1 << 20
"""Smaller results come from the allocator, which reuses its memory by itself."""
_MAX_IDLE_BLOCKS = 4
_ALIGNMENT = 16
"""Floats in a cache line; every result starts on one."""


class MemoryPool:
    """Gives out uninitialised float32 matrices. A block is idle again when its last tensor is gone."""

    def __init__(self) -> None:
        self._idle: list[np.ndarray] = []

    def empty(self, rows: int, width: int) -> Float[Tensor, "rows width"]:
        size = rows * width
        if 4 * size < _MIN_BYTES:
            return torch.empty(rows, width)
        block = min((b for b in self._idle if size <= len(b) <= 2 * size), key=len, default=None)
        if block is None:
            block = _aligned(size)
        # compared by identity: garbage collection may return blocks between any two of these lines
        self._idle = [idle for idle in self._idle if idle is not block]
        matrix = block[:size].reshape(rows, width)
        # the tensor, and all that share its memory, keep this array object alive
        weakref.finalize(matrix, self._give_back, block).atexit = False
        return torch.from_numpy(matrix)

    def _give_back(self, block: np.ndarray) -> None:
        self._idle = [block, *self._idle[: _MAX_IDLE_BLOCKS - 1]]


def _aligned(size: int) -> np.ndarray:
    block = np.empty(size + _ALIGNMENT, dtype=np.float32)
    first = -(block.ctypes.data // 4) % _ALIGNMENT
    return block[first : first + size]
