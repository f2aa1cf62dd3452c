"""Fills the cache: computes what is missing, shard by shard, with all missing layers in one LM pass."""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_sweep.activations.cache.layout import TOKENS, CacheFolder
from sae_sweep.activations.cache.manifest import (
    BadStep,
    FileRecord,
    Manifest,
    Shard,
    load_manifest,
    save_manifest,
)
from sae_sweep.activations.cache.shards import read_part, write_part
from sae_sweep.activations.device import dtype_name
from sae_sweep.activations.stream import ActivationStream, Buffer
from sae_sweep.config import SaeSweepError
from sae_sweep.config.pasted import override
from sae_sweep.store import Lease, disk_errors
from sae_sweep.store.machine import free_disk

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two checks of what another process writes."""
_GIB = 2**30

MakeStream = Callable[[Sequence[int]], ActivationStream]
"""Creates the stream of some layers, at its start."""


def fill(
    folder: CacheFolder,
    identity: Mapping[str, Any],
    wanted: Mapping[int, int],
    make_stream: MakeStream,
    *,
    d_in: int,
    batch: int,
    names: Mapping[str, str] | None = None,
) -> None:
    """Compute what `wanted` needs and the cache lacks; wait while another process writes into the folder.

    Each shard is complete on disk before it is in the manifest, so the next call continues after a kill.

    Args:
        folder: folder of the stream.
        identity: the stream's identity, from `cache_identity`.
        wanted: layer -> steps.
        make_stream: creates the stream with that identity.
        d_in: width of the residual stream.
        batch: rows per step.
        names: names of `model` and `dataset` for tables.

    Raises:
        SaeSweepError: if the disk is too small, the manifest cannot be used, or the stream fails.
    """
    lease, waiting = Lease(folder.root), False
    stream: ActivationStream | None = None
    while (manifest := load_manifest(folder)) is None or not manifest.covers(wanted):
        stream = stream or make_stream(sorted(wanted))
        start = stream.position()
        empty = Manifest(identity, d_in, dtype_name(stream.dtype), batch, start, names or {})
        owner = lease.owner
        if owner is None:
            _check_space(folder, manifest or empty, wanted, stream)
        elif not waiting:
            log.info("%s is being filled by %s: waiting", folder.root, owner)
            waiting = True
        with lease.if_free() as held:
            if held:
                _Writer(folder, load_manifest(folder) or empty, wanted, make_stream, lease).run()
                return
        time.sleep(POLL_S)


def _check_space(
    folder: CacheFolder, manifest: Manifest, wanted: Mapping[int, int], stream: ActivationStream
) -> None:
    """Log the space that filling needs; raise if the disk has less."""
    row = manifest.d_in * stream.dtype.itemsize
    size = sum(
        shard.steps * sum(4 if part == TOKENS else row for part in manifest.missing_parts(shard, wanted))
        for shard in manifest.shards
    )
    if not manifest.ended and (layers := manifest.layers_to_extend(wanted)):
        buffers = -(-(max(wanted.values()) - manifest.steps) // stream.buffer_steps)
        size += buffers * stream.buffer_steps * (4 + row * len(layers))
    size *= manifest.batch
    free = free_disk(folder.root)
    log.info(
        "caching %s tokens of layers %s: up to %.2f GiB in %s, where %.2f GiB are free",
        *(f"{max(wanted.values()) * manifest.batch:,}", ", ".join(map(str, sorted(wanted)))),
        *(size / _GIB, folder.root, free / _GIB),
    )
    if size > free:
        raise SaeSweepError(
            f"the activation cache needs {size / _GIB:.2f} GiB more in {folder.root}, "
            f"and {free / _GIB:.2f} GiB are free there: free some, "
            "set paths.cache=FOLDER on another disk, or use activations=stream"
        )


class _Writer:
    """Fills a folder whose lease it holds; `_manifest` always equals the one on disk."""

    def __init__(
        self,
        folder: CacheFolder,
        manifest: Manifest,
        wanted: Mapping[int, int],
        make_stream: MakeStream,
        lease: Lease,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._wanted = wanted
        self._make_stream = make_stream
        self._lease = lease
        self._stream: tuple[list[int], ActivationStream] | None = None
        """The stream in use, and its layers."""

    def run(self) -> None:
        remove_leftovers(self._folder, self._manifest)
        most = {
            layer: max(self._wanted.get(layer, 0), self._manifest.wanted.get(layer, 0))
            for layer in {*self._wanted, *self._manifest.wanted}
        }
        self._commit(wanted=most)
        tokens = max(self._wanted.values()) * self._manifest.batch
        with tqdm(total=tokens, unit=" tokens", unit_scale=True, file=sys.stderr, disable=None) as bar:
            for index in range(len(self._manifest.shards)):
                self._complete(index)
                bar.update(self._manifest.shards[index].steps * self._manifest.batch)
            while not self._manifest.ended and (layers := self._manifest.layers_to_extend(self._wanted)):
                self._append(layers)
                bar.update(self._manifest.shards[-1].steps * self._manifest.batch)
        log.info("%s: %s tokens", self._folder.root, f"{self._manifest.steps * self._manifest.batch:,}")

    def _complete(self, index: int) -> None:
        """Add the missing parts of a cached shard."""
        shard = self._manifest.shards[index]
        parts = self._manifest.missing_parts(shard, self._wanted)
        if not parts:
            return
        layers = [int(part) for part in parts if part != TOKENS]
        buffer = self._next_buffer(layers, shard.position)
        if buffer is None or buffer.steps != shard.steps or not self._same_tokens(shard, buffer):
            raise SaeSweepError(
                f"{self._folder.root}: the text no longer gives what was cached in shard {shard.number}; "
                f"remove the stream with `task=cache action=remove {override('stream', self._folder.name)}`"
            )
        files = {**shard.files, **self._write(shard.number, parts, buffer)}
        shards = list(self._manifest.shards)
        shards[index] = dataclasses.replace(shard, files=files)
        self._commit(shards=tuple(shards), bad=self._bad(buffer, shard.first_step))

    def _same_tokens(self, shard: Shard, buffer: Buffer) -> bool:
        if TOKENS not in shard.files:
            return True
        cached = read_part(self._folder, TOKENS, shard.files[TOKENS])
        return torch.equal(cached, _in_order(buffer.tokens, buffer).cpu())

    def _append(self, layers: list[int]) -> None:
        """Add a shard after the last one; at the end of the text, record that instead."""
        start = self._manifest.following
        buffer = self._next_buffer(layers, start)
        if buffer is None:
            self._commit(ended=True)
            return
        stream = self._stream_of(layers)
        shard = Shard(
            number=start["buffer"],
            first_step=start["step"],
            steps=buffer.steps,
            position=start,
            epochs=stream.epochs,
            files=self._write(start["buffer"], [*map(str, layers), TOKENS], buffer),
        )
        self._commit(
            shards=(*self._manifest.shards, shard),
            following=stream.position(),
            bad=self._bad(buffer, shard.first_step),
        )

    def _next_buffer(self, layers: list[int], position: dict[str, Any]) -> Buffer | None:
        stream = self._stream_of(layers)
        if stream.position() != position:
            stream.restore(position)
        return stream.next_buffer()

    def _stream_of(self, layers: list[int]) -> ActivationStream:
        # a stream needs a layer even if only token ids are missing: the lowest is the cheapest
        chosen = layers or [min(self._wanted)]
        if self._stream is None or self._stream[0] != chosen:
            self._stream = (chosen, self._make_stream(chosen))
        return self._stream[1]

    def _write(self, number: int, parts: Sequence[str], buffer: Buffer) -> dict[str, FileRecord]:
        """Write parts of a shard, with one at a time in memory."""
        files = {}
        for part in parts:
            rows = buffer.tokens if part == TOKENS else buffer.rows[int(part)]
            try:
                files[part] = write_part(self._folder, number, part, _in_order(rows, buffer))
            except SaeSweepError:
                self._lease.check()  # a process that took over removes unfinished files: name that reason
                raise
        return files

    def _bad(self, buffer: Buffer, first_step: int) -> dict[int, BadStep]:
        """Return the bad steps known so far together with those of a buffer."""
        found = dict(self._manifest.bad)
        for layer, (batch, problem) in buffer.bad.items():
            found[layer] = BadStep(first_step + batch, problem)
            log.warning("layer %d, step %d: %s", layer, first_step + batch, problem)
        return found

    def _commit(self, **changes: Any) -> None:
        """Write a changed manifest; all files it names are on disk already."""
        self._lease.check()
        self._manifest = dataclasses.replace(self._manifest, **changes)
        save_manifest(self._folder, self._manifest)


def _in_order(rows: Tensor, buffer: Buffer) -> Tensor:
    return rows[buffer.order.flatten()]


def remove_leftovers(folder: CacheFolder, manifest: Manifest) -> int:
    """Delete our files that a killed writer left, and return their bytes. The caller must hold the lease."""
    known = {record.file for shard in manifest.shards for record in shard.files.values()}
    known |= {folder.manifest.name, folder.used.name}
    freed = 0
    with disk_errors(folder.root):
        for file in folder.files()[0]:
            if file.name not in known:
                freed += file.stat().st_size
                os.unlink(file)
    return freed
