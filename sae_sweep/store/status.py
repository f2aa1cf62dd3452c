"""Reads and writes `status.json` and `config.yaml` of a run."""

import dataclasses
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from omegaconf import OmegaConf

from sae_sweep import __version__
from sae_sweep.config import RunConfig, SaeSweepError
from sae_sweep.store.atomic import read_json, write_json, write_text
from sae_sweep.store.locks import hold
from sae_sweep.store.partial import remove_ours
from sae_sweep.store.paths import CHECKPOINTS, RunFolder
from sae_sweep.store.plan_file import PlannedRun

log = logging.getLogger(__name__)

_KEPT = ("resolved", "mixed", "fell_back", "job", "tokens", "seconds", "lm")
"""Keys that a later state keeps."""
_VERSIONS = ("torch", "transformer_lens", "transformers", "lightning", "numpy")


def provenance(run: PlannedRun) -> dict[str, Any]:
    """Origin of a run's weights, besides its config: fingerprints, host and versions."""
    return {
        "run_id": run.run_id,
        **run.fingerprints,
        "host": platform.node(),
        "versions": {"python": platform.python_version(), "sae_sweep": __version__}
        | {name: version(name) for name in _VERSIONS},
    }


def freeze(run: PlannedRun) -> None:
    """Write the config of a run that is not done into its folder.

    Raises:
        SaeSweepError: if the folder holds another run.
    """
    held = read_status(run.folder).get("run_id", run.run_id)
    if held != run.run_id:
        raise SaeSweepError(
            f"{run.folder.root} holds another run (id {held}, not {run.run_id}): "
            "its text, model weights or versions differ; choose another sweep=NAME, or move the folder away"
        )
    if state(run.folder) == "done":
        remove_ours(run.folder.checkpoint, CHECKPOINTS)  # it was killed before it could
        return
    write_text(run.folder.config, OmegaConf.to_yaml(OmegaConf.create(run.config.as_dict())))


def read_status(run: RunFolder) -> Mapping[str, Any]:
    """Read the run's status; empty if it never started. Raises SaeSweepError if it is damaged."""
    if not run.status.exists():
        return {}
    status = read_json(run.status)
    if not isinstance(status, Mapping):
        raise SaeSweepError(f"cannot read {run.status}: not the status of a run; remove it to start over")
    return status


def state(folder: RunFolder) -> str:
    """State of a run: pending (also without a status file), running, done or failed."""
    return str(read_status(folder).get("state", "pending"))


def set_state(run: PlannedRun, state: str, **details: Any) -> None:
    """Write `status.json` with the state, its time, and `details` such as the error."""
    before = read_status(run.folder)
    times = {**before.get("times", {}), state: time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    status = {
        "state": state,
        "name": run.name,
        "times": times,
        "pid": os.getpid(),
        **provenance(run),
        **{key: before[key] for key in _KEPT if key in before},
        **details,
    }
    write_json(run.folder.status, status)


def prepare(runs: Sequence[PlannedRun]) -> None:
    """Freeze runs for another process to train, and set those that are not done to pending.

    Raises:
        SaeSweepError: if a folder is in use or holds another run.
    """
    for run in runs:
        with hold(run.folder):
            freeze(run)
            if state(run.folder) != "done":
                set_state(run, "pending", job=None)


def evaluation_keys(config: RunConfig) -> dict[str, Any]:
    """The keys that an evaluation depends on, as `metrics.json` records them."""
    return dataclasses.asdict(config.evaluation)


def is_complete(run: PlannedRun) -> bool:
    """Whether a run is done, and evaluated as its config says."""
    if state(run.folder) != "done":
        return False
    try:
        return read_json(run.folder.metrics).get("evaluation") == evaluation_keys(run.config)
    except SaeSweepError as error:
        log.warning("%s; it is evaluated again", error)
        return False


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs that have not failed, and are not complete."""
    return [run for run in runs if state(run.folder) != "failed" and not is_complete(run)]


def report_failed(runs: Sequence[PlannedRun]) -> int:
    """Log each failed run with its log file; returns their number."""
    failed = [run for run in runs if state(run.folder) == "failed"]
    for run in failed:
        log.error("failed: %s (see %s)", run.name, run.folder.log)
    return len(failed)
