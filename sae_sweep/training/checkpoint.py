"""Checkpoints of a member: one safetensors file holds the whole state and is written atomically.

Its checksum covers everything in it, so it is either restored exactly or known to be damaged. The previous
checkpoint is kept as a fallback, which loses only the steps between the two.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_sweep.config import first_line
from sae_sweep.saes import tensors_checksum
from sae_sweep.store import RunFolder, regular, unreadable, write_atomic
from sae_sweep.store.partial import remove_ours
from sae_sweep.store.paths import CHECKPOINTS
from sae_sweep.training.faults import out_of_memory

logger = logging.getLogger(__name__)

_NEWEST, _BEFORE = CHECKPOINTS
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""Errors of safetensors and torch at a damaged file; those of `_read` are ValueErrors."""


class Checkpoint(NamedTuple):
    """State from which a member continues as if it had never stopped."""

    state: dict[str, Tensor]
    """State from `Learner.state`: weights, optimiser, counters, step."""
    position: Any
    """Position of the activation stream after the member's last batch, JSON-serialisable."""
    history: Any
    """Mark of the member's sink, JSON-serialisable: how much had been logged."""
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
    values = checkpoint._asdict()
    state: dict[str, Tensor] = values.pop("state")
    progress = json.dumps({"run_id": run_id, **values})
    checksums = {
        "checksum": tensors_checksum(state, progress),
        "progress_checksum": _progress_checksum(progress),
    }
    whole = save(state, metadata={"progress": progress, **checksums})
    newest = folder.checkpoint / _NEWEST

    def write(temporary: Path) -> None:
        temporary.write_bytes(whole)
        if newest.exists():
            newest.replace(folder.checkpoint / _BEFORE)

    write_atomic(newest, write)


def load_checkpoint(folder: RunFolder, run_id: str) -> Checkpoint | None:
    """Load the newest undamaged checkpoint, or None if there is none; damage is logged.

    Raises:
        SaeSweepError: if a checkpoint that may be whole cannot be opened.
        MemoryError: if it does not fit into memory, or another error that says so.
    """
    damaged = False
    for path in (folder.checkpoint / _NEWEST, folder.checkpoint / _BEFORE):
        if not path.exists():
            continue
        _refuse_unopened(path)
        try:
            found = _read(path, run_id)
        except _DAMAGE as error:
            if out_of_memory(error):
                raise
            logger.warning("%s is damaged (%s)", path, first_line(error))
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
            with safe_open(regular(path), framework="pt") as file:
                progress = _progress(file.metadata(), run_id)
            return Begun(progress["position"]["step"], progress["resolved"], progress["mixed"])
        except _DAMAGE:
            continue  # missing, damaged or another run's: loading it says so
    return None


def discard_checkpoint(folder: RunFolder) -> None:
    """Remove the checkpoints of a run that is done or must start over."""
    remove_ours(folder.checkpoint, CHECKPOINTS)


def _refuse_unopened(path: Path) -> None:
    """Raise SaeSweepError if a file cannot be opened: safetensors would call it missing."""
    if not path.is_file():
        return  # which is damage
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error


def _read(path: Path, run_id: str) -> Checkpoint:
    with safe_open(regular(path), framework="pt") as file:
        kept = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    progress = _progress(kept, run_id)
    if kept["checksum"] != tensors_checksum(state, kept["progress"]):
        raise ValueError("its checksum differs")
    return Checkpoint(state, **progress)


def _progress(kept: Mapping[str, str] | None, run_id: str) -> dict[str, Any]:
    """Everything except the tensors, from a file's metadata; its own checksum serves readers of it alone."""
    if not kept or not kept.keys() >= {"progress", "progress_checksum", "checksum"}:
        raise ValueError("it is not a checkpoint of this version of sae_sweep")
    if kept["progress_checksum"] != _progress_checksum(kept["progress"]):
        raise ValueError("its checksum differs")
    progress: dict[str, Any] = json.loads(kept["progress"])
    if (owner := progress.pop("run_id")) != run_id:
        raise ValueError(f"it belongs to run {owner}, not {run_id}")
    return progress


def _progress_checksum(progress: str) -> str:
    return tensors_checksum({}, progress)
