"""What each part of tools/gpu_check.py is given: a device, a time, sizes, and where its results go."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Put = Callable[[dict[str, Any]], None]


class Cut(BaseException):
    """The time of a part is up."""


class Size(NamedTuple):
    """An SAE and its batch."""

    name: str
    d_in: int
    d_sae: int
    batch: int
    k: int


REAL = (Size("quickstart", 128, 1024, 256, 16), Size("gpt2-small", 768, 12_288, 4096, 16))
TINY = (Size("tiny", 16, 128, 32, 4), Size("tiny, wider", 24, 256, 64, 4))


@dataclass(frozen=True)
class Setting:
    """What a part is given."""

    device: torch.device
    seconds: float
    """Time that it may take."""
    put: Put
    """Writes a record."""

    @property
    def tiny(self) -> bool:
        """Whether this only tests the code."""
        return self.device.type == "cpu"

    @property
    def sizes(self) -> tuple[Size, ...]:
        return TINY if self.tiny else REAL
