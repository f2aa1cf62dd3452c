"""Activations, computed or cached, as Lightning's data: batches pass untouched, each with its place."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
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


class Delivered(NamedTuple):
    """One batch and where the stream stood right behind it."""

    batch: Batch
    position: Any
    known: Mapping[str, float]
    """What is logged beside the SAE's own metrics: `epochs`."""


class _Deliveries:
    """The loader; the position is read with the batch because Lightning fetches one batch ahead."""

    def __init__(self, stream: Stream, steps: int) -> None:
        self._stream = stream
        self._steps = steps

    def __iter__(self) -> Iterator[Delivered]:
        for batch in islice(self._stream, self._steps):
            yield Delivered(batch, self._stream.position(), {"epochs": self._stream.epochs})


class StreamData(LightningDataModule):
    """At most `steps` batches of a stream, from wherever it stands."""

    def __init__(self, stream: Stream, steps: int) -> None:
        super().__init__()
        self._deliveries = _Deliveries(stream, steps)

    def train_dataloader(self) -> _Deliveries:
        return self._deliveries

    def transfer_batch_to_device(
        self, batch: Delivered, device: torch.device, dataloader_idx: int
    ) -> Delivered:
        """Streams give batches on the device, computed there or copied from the cache."""
        del device, dataloader_idx
        return batch
