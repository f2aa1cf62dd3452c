"""Protocols of an activation stream, computed or cached, as training uses it."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor


class Batch(Protocol):
    """A batch of an activation stream (`sae_sweep.activations`)."""

    @property
    def activations(self) -> Mapping[int, Float[Tensor, "batch d_in"]]:
        """Raw residuals by layer, on the device."""
        ...

    @property
    def step(self) -> int:
        """Index of the batch in its stream, from 0."""
        ...

    @property
    def position(self) -> Any:
        """Position of the stream after this batch, JSON-serialisable."""
        ...

    @property
    def epochs(self) -> float:
        """Passes over the text up to this batch."""
        ...


class Stream(Protocol):
    """An endless, restorable sequence of batches (`sae_sweep.activations`)."""

    @property
    def epochs(self) -> float:
        """Passes over the text so far."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...

    def position(self) -> Any:
        """Position before the next batch, JSON-serialisable."""

    def restore(self, position: Any) -> None: ...
