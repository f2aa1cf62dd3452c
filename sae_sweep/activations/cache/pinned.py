"""Host memory that a GPU copies from while the CPU goes on."""

import torch
from torch import Tensor


class PinnedMemory:
    """Two sets of buffers, a shard each, used in turn: pinning is slow, so a buffer is kept, and grows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._turn = 0

    def turn(self) -> "PinnedSet":
        """The set that was handed out the time before last.

        Call it once the last copy out of that set is enqueued on the current stream.
        """
        self._turn = 1 - self._turn
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        return PinnedSet(self._sets[self._turn], copied)


class PinnedSet:
    """The buffers of one shard, by part; they may be taken in any thread."""

    def __init__(self, buffers: dict[str, Tensor], copied: torch.cuda.Event) -> None:
        self._buffers = buffers
        self._copied = copied

    def take(self, part: str, size: int) -> Tensor:
        """At least `size` bytes, once the GPU has copied what they held before."""
        self._copied.synchronize()
        buffer = self._buffers.get(part)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[part] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return buffer
