"""Reads batches from the cache, in place of the stream that computed them."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.activations.cache.manifest import Manifest, Shard, load_manifest
from sae_sweep.activations.cache.shards import ALIGNMENT, read_part
from sae_sweep.activations.stream import (
    ActivationBatch,
    bad_activations,
    bad_position,
    check_position,
)
from sae_sweep.config import SaeSweepError
from sae_sweep.config.pasted import override

_Parts = dict[str, tuple[Tensor, ...]]
"""Batches of a shard by part: each layer, and the token ids."""
_THREADS = 2
"""Threads that read shards; a single one computes checksums hardly faster than the page cache is read."""


class CachedStream:
    """Batches, positions and errors of the `ActivationStream` that filled the cache.

    Each shard is read whole while the previous one is trained on, and used after its checksums are verified.
    So two shards of the layers are in memory; on a CPU, as mapped pages of their files, and batches are views
    of those pages if they are aligned. Batches must not be modified.
    """

    def __init__(self, folder: CacheFolder, layers: Sequence[int], device: torch.device) -> None:
        """Open the cached stream; SaeSweepError if the folder has no manifest that this version can read."""
        manifest = load_manifest(folder)
        if manifest is None:
            raise SaeSweepError(f"{folder.root}: no activations are cached there")
        with suppress(OSError):  # a cache that is only read, or a full disk
            folder.used.touch()
        self._folder = folder
        self._manifest: Manifest = manifest
        self._layers = sorted(set(layers))
        self._device = device
        self._step = self._number = self._batch = 0
        self._shard: _Parts | None = None
        self._ahead: tuple[int, dict[str, Future[Tensor]]] | None = None
        self._reader = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-reader")
        self._pinned = PinnedMemory(device) if device.type == "cuda" else None

    @property
    def epochs(self) -> float:
        """Times the training text has been read, up to the end of the current shard."""
        shards = self._manifest.shards[: self._number + 1]
        return shards[-1].epochs if shards else 0.0

    def position(self) -> dict[str, Any]:
        """Return the position of the `ActivationStream` at this step."""
        start = self._start_of(self._number)
        return {
            "step": self._step,
            "buffer": self._number,
            "batch": self._batch,
            "sequences": start["sequences"],
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position of this stream or of an `ActivationStream` with the same config.

        Raises:
            SaeSweepError: if it is no position of such a stream, or the cache does not reach it or was filled
                from another text.
        """
        check_position(position)
        number, end = position["buffer"], len(self._manifest.shards)
        if number > end or (number == end and position["batch"] > 0):
            raise self._too_short(position["step"])
        if number < end and position["batch"] > self._manifest.shards[number].steps:
            raise bad_position(f"batch={position['batch']} of {self._manifest.shards[number].steps}")
        if self._start_of(number)["sequences"] != json.loads(json.dumps(position["sequences"])):
            raise SaeSweepError(
                f"{self._folder.root}: step {position['step']} of the checkpoint lies elsewhere in the text; "
                f"remove the stream with `task=cache action=remove {override('stream', self._folder.name)}`"
            )
        self._step, self._number, self._batch = position["step"], number, position["batch"]
        self._shard = None

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        """Return the next batch; StopIteration at the end of a text with `exhausted=stop`.

        Raises:
            BadActivationsError: at the step at which the `ActivationStream` raised it.
            DamagedShardError: if a file is missing or damaged.
            SaeSweepError: after the last shard.
        """
        if self._batch and self._batch == self._manifest.shards[self._number].steps:
            self._number, self._batch, self._shard = self._number + 1, 0, None
        if self._number == len(self._manifest.shards):
            if self._manifest.ended:
                raise StopIteration
            raise self._too_short(self._step)
        for layer in self._layers:
            bad = self._manifest.bad.get(layer)
            if bad is not None and bad.step == self._step:
                raise bad_activations(layer, bad.step, bad.problem)
        if self._shard is None:
            self._shard = self._load_shard(self._number)
        rows = {part: self._on_device(batches[self._batch]) for part, batches in self._shard.items()}
        tokens = rows.pop(TOKENS)
        activations = {int(part): of_layer.float() for part, of_layer in rows.items()}
        self._step += 1
        self._batch += 1
        return ActivationBatch(activations, self._step - 1, tokens, self.position(), self.epochs)

    def _on_device(self, rows: Tensor) -> Tensor:
        """Return rows on the device with torch's own alignment, which can change the last bit of results."""
        if self._device.type != "cpu":
            return rows.to(self._device, non_blocking=self._pinned is not None)
        return rows if rows.data_ptr() % ALIGNMENT == 0 else rows.clone()

    def _load_shard(self, number: int) -> _Parts:
        """Return the parts of a shard, which usually are read already, and start to read the next shard."""
        ahead = self._ahead[1] if self._ahead is not None and self._ahead[0] == number else None
        if self._ahead is not None:
            wait(self._ahead[1].values())  # even if it is not needed: it uses the same pinned memory
        self._ahead = None
        reading = ahead or self._start_reading(number)
        wait(reading.values())
        parts = {part: future.result().split(self._manifest.batch) for part, future in reading.items()}
        if number + 1 < len(self._manifest.shards):
            self._ahead = (number + 1, self._start_reading(number + 1))
        return parts

    def _start_reading(self, number: int) -> dict[str, Future[Tensor]]:
        """Start to read and verify the files of a shard in the background."""
        memory = None if self._pinned is None else self._pinned.next_set()
        shard = self._manifest.shards[number]
        return {
            part: self._reader.submit(self._read, shard, part, memory)
            for part in (*map(str, self._layers), TOKENS)
        }

    def _read(self, shard: Shard, part: str, memory: "PinnedSet | None") -> Tensor:
        if part not in shard.files:
            raise SaeSweepError(f"{self._folder.root}: {part} is not cached from step {shard.first_step} on")
        record = shard.files[part]
        into = None if memory is None else memory.buffer(part, record.bytes)
        return read_part(self._folder, part, record, into)

    def _start_of(self, number: int) -> dict[str, Any]:
        """Return the position at the start of a shard, also of the one that would follow the last."""
        shards = self._manifest.shards
        return shards[number].position if number < len(shards) else self._manifest.following

    def _too_short(self, step: int) -> SaeSweepError:
        return SaeSweepError(
            f"{self._folder.root} ends at step {self._manifest.steps}, and step {step} is needed: "
            "`task=cache` with the run's own keys extends it"
        )


class PinnedMemory:
    """Host memory that a GPU copies from asynchronously: two sets of buffers, one per shard, used in turn.

    Pinning is slow, so buffers are kept and grow.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._turn = 0

    def next_set(self) -> "PinnedSet":
        """Return the set from the call before the previous one.

        All copies out of that set must be enqueued on torch's current CUDA stream.
        """
        self._turn = 1 - self._turn
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        return PinnedSet(self._sets[self._turn], copied)


class PinnedSet:
    """Pinned buffers of one shard, by part; usable from any thread."""

    def __init__(self, buffers: dict[str, Tensor], copied: torch.cuda.Event) -> None:
        self._buffers = buffers
        self._copied = copied

    def buffer(self, part: str, size: int) -> Tensor:
        """Return at least `size` bytes, after the GPU has copied their earlier content."""
        self._copied.synchronize()
        buffer = self._buffers.get(part)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[part] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return buffer
