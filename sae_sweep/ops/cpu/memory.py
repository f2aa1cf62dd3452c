"""Large results in memory that is used again: to get fresh pages costs as much as to fill them."""

import sys
from collections import deque

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_LEAST_BYTES = 1 << 20
"""Below, the allocator does the same by itself."""
_BLOCKS = 8
"""Blocks that are kept while no result lies in them."""
_IDLE = 3
"""References to a block that no tensor has: of the queue, of the loop and of the question itself."""


class Recycled:
    """Uninitialised float32 matrices. A block is free again when the last tensor that lies in it is gone."""

    def __init__(self) -> None:
        self._blocks: deque[np.ndarray] = deque(maxlen=_BLOCKS)

    def empty(self, rows: int, width: int) -> Float[Tensor, "rows width"]:
        if 4 * rows * width < _LEAST_BYTES:
            return torch.empty(rows, width)
        for block in self._blocks:
            if block.shape == (rows, width) and sys.getrefcount(block) == _IDLE:
                return torch.from_numpy(block)
        self._blocks.append(np.empty((rows, width), dtype=np.float32))
        return torch.from_numpy(self._blocks[-1])
