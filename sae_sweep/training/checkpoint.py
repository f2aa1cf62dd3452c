"""The state of one member on disk: one safetensors file that holds all, and appears whole or not at all.

The one before it is kept too: what falls back on it loses the steps between the two, and nothing else.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from sae_sweep.store import RunFolder, write_atomic

logger = logging.getLogger(__name__)

_NEWEST, _BEFORE = "state.safetensors", "before.safetensors"


class Checkpoint(NamedTuple):
    """Everything that continues a member as if it had never stopped."""

    state: dict[str, Tensor]
    """What `Learner.state` gave: weights, optimiser, counters, step."""
    position: Any
    """The stream's position behind the last batch the member saw, JSON-able."""
    history: int
    """The mark of the member's sink: what was logged up to here."""
    seconds: float
    """Training time so far."""


def save_checkpoint(folder: RunFolder, run_id: str, checkpoint: Checkpoint) -> None:
    """Add a checkpoint, and keep one before it.

    Raises:
        SaeSweepError: if the disk is full or the folder cannot be written.
    """
    progress = {
        "run_id": run_id,
        "position": checkpoint.position,
        "history": checkpoint.history,
        "seconds": checkpoint.seconds,
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
    """The member's newest whole checkpoint, or None where there is none; damage is said in the log."""
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
            logger.warning("going on from the checkpoint before it")
        return found
    if damaged:
        logger.warning("starting this run over from its first step")
    return None


def discard_checkpoint(folder: RunFolder) -> None:
    """Remove the resume state: the run is done, or not worth resuming."""
    shutil.rmtree(folder.checkpoint, ignore_errors=True)


def _read(path: Path, run_id: str) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        progress = json.loads((file.metadata() or {})["progress"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if progress["run_id"] != run_id:
        raise ValueError(f"it belongs to run {progress['run_id']}, not {run_id}")
    if progress["checksum"] != _checksum(state):
        raise ValueError("its checksum differs")
    return Checkpoint(state, progress["position"], int(progress["history"]), float(progress["seconds"]))


def _checksum(state: Mapping[str, Tensor]) -> int:
    """CRC-32 over all names and bytes: safetensors itself notices a short file, but no flipped bit."""
    total = 0
    for name in sorted(state):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(state[name].reshape(-1).view(uint8).numpy().tobytes(), total)
    return total
