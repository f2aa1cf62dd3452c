"""What training needs of a stream of activations, computed or cached."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor


class Batch(Protocol):
    """What the stream yields (`sae_sweep.activations`)."""

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
        """Position of the stream right behind the batch, JSON-able."""
        ...

    @property
    def epochs(self) -> float:
        """Times the text has been read by then."""
        ...


class Stream(Protocol):
    """An endless, restorable sequence of batches (`sae_sweep.activations`)."""

    @property
    def epochs(self) -> float:
        """Times the text has been read."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...

    def position(self) -> Any:
        """JSON-able; the next batch is the one behind it."""

    def restore(self, position: Any) -> None: ...
