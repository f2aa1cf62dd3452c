"""The state of one member on disk: one safetensors file that holds all, and appears whole or not at all."""

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

from sae_sweep.storage import RunFolder, write_atomic

logger = logging.getLogger(__name__)

_FILE = "state.safetensors"


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
    """Replace the member's checkpoint; the earlier one stays until the new one is complete.

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
    write_atomic(folder.checkpoint / _FILE, lambda temporary: _write(temporary, whole))


def _write(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


def load_checkpoint(folder: RunFolder, run_id: str) -> Checkpoint | None:
    """The member's checkpoint, or None where there is none, or only a damaged one (said in the log)."""
    path = folder.checkpoint / _FILE
    _remove_unfinished(folder.checkpoint)
    if not path.exists():
        return None
    try:
        return _read(path, run_id)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): starting this run over from its first step", path, error)
        return None


def discard_checkpoint(folder: RunFolder) -> None:
    """Remove the resume state: the run is done, or not worth resuming."""
    shutil.rmtree(folder.checkpoint, ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    # What a process that was killed while it wrote has left; the run's lock is ours now.
    for leftover in folder.glob(f".{_FILE}.*"):
        leftover.unlink(missing_ok=True)


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
