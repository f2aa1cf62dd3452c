"""Reuses memory: fresh pages from the system cost as much time as filling them."""

import threading
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
        # garbage collection may return a block in any thread, also in one that has the lock
        self._lock = threading.RLock()

    def empty(self, rows: int, width: int) -> Float[Tensor, "rows width"]:
        size = rows * width
        if 4 * size < _MIN_BYTES:
            return torch.empty(rows, width)
        block = self._take(size)
        if block is None:
            block = _aligned(size)
        matrix = block[:size].reshape(rows, width)
        # the tensor, and all that share its memory, keep this array object alive
        weakref.finalize(matrix, self._give_back, block).atexit = False
        return torch.from_numpy(matrix)

    def _take(self, size: int) -> np.ndarray | None:
        with self._lock:
            block = min((b for b in self._idle if size <= len(b) <= 2 * size), key=len, default=None)
            # compared by identity: garbage collection may return blocks between any two of these lines
            self._idle = [idle for idle in self._idle if idle is not block]
            return block

    def _give_back(self, block: np.ndarray) -> None:
        with self._lock:
            self._idle = [block, *self._idle[: _MAX_IDLE_BLOCKS - 1]]


class Scratch(threading.local):
    """Memory that a thread's every step uses again."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """At least `size` uninitialised numbers, the same as before under this name."""
        held = self._held.get(name)
        if held is None or len(held) < size:
            self._held.pop(name, None)  # freed first: both may not fit
            held = self._held[name] = torch.empty(size, dtype=dtype)
        return held


def _aligned(size: int) -> np.ndarray:
    block = np.empty(size + _ALIGNMENT, dtype=np.float32)
    first = -(block.ctypes.data // 4) % _ALIGNMENT
    return block[first : first + size]
