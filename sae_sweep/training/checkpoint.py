"""Checkpoints of a member: one safetensors file holds the whole state and is written atomically.

The previous checkpoint is kept as a fallback, which loses only the steps between the two.
"""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from sae_sweep.store import RunFolder, write_atomic
from sae_sweep.store.partial import remove_ours
from sae_sweep.store.paths import CHECKPOINTS

logger = logging.getLogger(__name__)

_NEWEST, _BEFORE = CHECKPOINTS


class Checkpoint(NamedTuple):
    """State from which a member continues as if it had never stopped."""

    state: dict[str, Tensor]
    """State from `Learner.state`: weights, optimiser, counters, step."""
    position: Any
    """Position of the activation stream after the member's last batch, JSON-serialisable."""
    history: int
    """Mark of the member's sink: how much had been logged."""
    seconds: float
    """Training time so far."""
    resolved: Mapping[str, Any] = {}
    """`Resolved.as_dict` of the training so far; empty: not known."""
    mixed: Sequence[Mapping[str, Any]] = ()
    """`Conditions.mixed` of the training so far."""


class Begun(NamedTuple):
    """How the training that a checkpoint continues was done."""

    step: int
    resolved: Mapping[str, Any]
    mixed: Sequence[Mapping[str, Any]]


def save_checkpoint(folder: RunFolder, run_id: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and keep the previous one.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    progress = {
        "run_id": run_id,
        "position": checkpoint.position,
        "history": checkpoint.history,
        "seconds": checkpoint.seconds,
        "resolved": dict(checkpoint.resolved),
        "mixed": list(checkpoint.mixed),
        "checksum": _checksum(checkpoint.state),
    }
    whole = save(checkpoint.state, metadata={"progress": json.dumps(progress)})
    newest = folder.checkpoint / _NEWEST

    def write(temporary: Path) -> None:
        _write(temporary, whole)
        if newest.exists():
            newest.replace(folder.checkpoint / _BEFORE)

    write_atomic(newest, write)


def _write(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


def load_checkpoint(folder: RunFolder, run_id: str) -> Checkpoint | None:
    """Load the newest undamaged checkpoint, or None if there is none; damage is logged."""
    damaged = False
    for path in (folder.checkpoint / _NEWEST, folder.checkpoint / _BEFORE):
        if not path.exists():
            continue
        try:
            found = _read(path, run_id)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s)", path, error)
            damaged = True
            continue
        if damaged:
            logger.warning("continuing from the previous checkpoint")
        return found
    if damaged:
        logger.warning("starting this run over from its first step")
    return None


def begun(folder: RunFolder, run_id: str) -> Begun | None:
    """How the newest checkpoint of a run was trained; None if there is none. Does not read the weights."""
    for path in (folder.checkpoint / _NEWEST, folder.checkpoint / _BEFORE):
        try:
            with safe_open(path, framework="pt") as file:
                progress = json.loads((file.metadata() or {})["progress"])
            if progress["run_id"] == run_id:
                return Begun(progress["position"]["step"], progress["resolved"], progress["mixed"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue  # missing or damaged: loading it says so
    return None


def discard_checkpoint(folder: RunFolder) -> None:
    """Remove the checkpoints of a run that is done or must start over."""
    remove_ours(folder.checkpoint, CHECKPOINTS)


def _read(path: Path, run_id: str) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        progress = json.loads((file.metadata() or {})["progress"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if progress["run_id"] != run_id:
        raise ValueError(f"it belongs to run {progress['run_id']}, not {run_id}")
    if progress["checksum"] != _checksum(state):
        raise ValueError("its checksum differs")
    return Checkpoint(
        state,
        progress["position"],
        int(progress["history"]),
        float(progress["seconds"]),
        progress["resolved"],
        progress["mixed"],
    )


def _checksum(state: Mapping[str, Tensor]) -> int:
    """CRC-32 of all names and bytes: safetensors detects a truncated file, but not a flipped bit."""
    total = 0
    for name in sorted(state):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(state[name].reshape(-1).view(uint8).numpy().tobytes(), total)
    return total
