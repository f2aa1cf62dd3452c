"""Reads and writes `status.json`, the state of a run, and prepares runs for training."""

import dataclasses
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any, TypedDict

from sae_sweep import __version__
from sae_sweep.config import ConfigError, RunConfig, SaeSweepError, build
from sae_sweep.config.checks import one_of
from sae_sweep.config.pasted import pasted
from sae_sweep.store.atomic import DiskError
from sae_sweep.store.config_file import write_config
from sae_sweep.store.locks import allow_holding, hold, is_held
from sae_sweep.store.metrics import read_metrics
from sae_sweep.store.partial import remove_ours
from sae_sweep.store.paths import CHECKPOINTS, RunFolder
from sae_sweep.store.plan_file import PlannedRun
from sae_sweep.store.records import is_present, read_record, unreadable, write_record

log = logging.getLogger(__name__)

STATES = ("pending", "running", "done", "failed")
DAMAGED = "damaged"
"""Shown state of a run whose `status.json` cannot be read; no file says so."""
_REMEDY = "remove it to train this run again"
_KEPT = ("resolved", "mixed", "fell_back", "job")
"""Keys that a later state keeps."""
_TRAINED = ("tokens", "seconds", "lm", "history")
"""Keys that a later state keeps unless the run is trained again."""
_MOST_NAMED = 3
"""Runs named in one line; the rest of those that failed for one cause are counted."""
_EMPTY: tuple[Any, ...] = (None, {}, (), [])
_FLAT_FINGERPRINTS = ("corpus", "model")
"""Fingerprints that version 0.1.0 wrote beside the other keys."""
_VERSIONS = ("torch", "transformer_lens", "transformers", "lightning", "numpy")

LmUseRecord = TypedDict("LmUseRecord", {"pass": str, "tokens": int, "seconds": float, "alone": int})
"""What the LM read for a run: the id of the pass, its tokens and seconds until the run ended, and the tokens
that the run alone would have read."""


@dataclass(frozen=True)
class Status:
    """State of a run, and where and how it was trained."""

    state: str
    """pending, running, done or failed."""
    run_id: str | None
    """None only for a run that never started."""
    name: str | None = None
    times: Mapping[str, str] = field(default_factory=dict)
    """Latest time of each state, in ISO 8601."""
    pid: int | None = None
    """Process that wrote it."""
    host: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python and the libraries."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the text and the LM's weights."""
    error: str | None = None
    """Why the run failed."""
    tokens: int | None = None
    """SAE inputs that it was trained on."""
    seconds: float | None = None
    """Training time."""
    lm: LmUseRecord | None = None
    history: Mapping[str, str | int] | None = None
    """Mark of the end of `history.jsonl` when the run ended: its length and checksum."""
    resolved: Mapping[str, str | int | None] = field(default_factory=dict)
    """What each `auto` became."""
    mixed: Sequence[Mapping[str, Any]] = ()
    """Changes of `resolved` while the run was trained."""
    fell_back: Mapping[str, str] = field(default_factory=dict)
    """Fast paths that were not used, and why."""
    job: int | None = None
    """Number of the frozen group that the run belongs to; None for a run without a job."""

    def __post_init__(self) -> None:
        """Check what a type cannot say. Raises ConfigError."""
        problems: list[str] = []
        one_of(problems, "state", self.state, STATES)
        for key in ("tokens", "seconds", "pid", "job"):
            if (getattr(self, key) or 0) < 0:
                problems.append(f"{key}={getattr(self, key)}: must be at least 0")
        problems += [
            f"times.{state}={text}: no time" for state, text in self.times.items() if not _is_time(text)
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def since(self) -> str | None:
        """Time at which the run came into its state."""
        return self.times.get(self.state)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).timestamp() > 0
    except (ValueError, OverflowError):
        return False


def provenance(run: PlannedRun) -> dict[str, Any]:
    """Origin of a run's weights, besides its config: fingerprints, host and versions."""
    return {**_origin(run), **run.fingerprints}


def _origin(run: PlannedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "host": platform.node(),
        "versions": {"python": platform.python_version(), "sae_sweep": __version__}
        | {name: version(name) for name in _VERSIONS},
    }


def freeze(run: PlannedRun) -> None:
    """Write the config of a run into its folder; that of a finished run stays as it is.

    Raises:
        SaeSweepError: if the folder holds another run, or its status is damaged.
    """
    status = read_status(run.folder)
    held = status.run_id
    if held not in (None, run.run_id):
        raise SaeSweepError(
            f"{run.folder.status} is of another run (id {held}, not {run.run_id}): text, model weights or "
            "versions differ, or the file was replaced; choose another sweep=NAME, or move the folder away"
        )
    if status.state == "done":
        remove_ours(run.folder.checkpoint, CHECKPOINTS)  # it was killed before it could
        if is_present(run.folder.config):
            return
    write_config(run.folder, run.config)


def read_status(run: RunFolder, run_id: str | None = None) -> Status:
    """Read the run's status; it is pending, without an id, if the run never started.

    Raises:
        SaeSweepError: naming the file and the remedy, if it is damaged, or of another run than `run_id`.
    """
    if not is_present(run.status):
        return Status("pending", run_id=None)
    record = read_record(run.status, _REMEDY)
    flat = {key: record.pop(key) for key in _FLAT_FINGERPRINTS if key in record}
    try:
        status: Status = build(Status, {"fingerprints": flat, **record})
    except ConfigError as error:
        raise unreadable(run.status, error, _REMEDY) from error
    if status.run_id is None:
        raise unreadable(run.status, "run_id is null", _REMEDY)
    if run_id not in (None, status.run_id):
        why = f"it is of run {status.run_id}, not {run_id}"
        raise unreadable(run.status, why, "restore it, or move the run's folder away")
    return status


def read_shown_status(run: RunFolder, run_id: str) -> Status:
    """Read the status for a table; one that is missing although the run was begun is damage, too."""
    left = [run.metrics, run.sae, *(run.checkpoint / name for name in CHECKPOINTS)]
    if any(path.exists() for path in left) and not is_present(run.status):
        raise unreadable(run.status, "it is missing", "put it back, or launch the sweep again")
    return read_status(run, run_id)


def shown_state(status: Status, folder: RunFolder, *, in_jobs: bool = False) -> str:
    """Written state, or `interrupted` if the run had started but no process or job continues it.

    Args:
        status: of the run.
        folder: its.
        in_jobs: whether a submitted job has it.
    """
    waits = status.state == "pending" and (in_jobs or "running" not in status.times)
    if status.state in ("pending", "running") and not waits and not is_held(folder):
        return "interrupted"
    return status.state


def state(folder: RunFolder) -> str:
    """State of a run: pending (also without a status file), running, done, failed, or damaged."""
    try:
        return read_status(folder).state
    except SaeSweepError:
        return DAMAGED


def set_state(run: PlannedRun, state: str, **details: Any) -> None:
    """Write `status.json` with the state, its time, and `details` such as the error.

    What holds for the whole run stays as it was unless `details` say otherwise: the times, what `auto`
    became, and the group's job. What training ended with stays until the run is trained again.
    """
    before = _known(run.folder)
    values = {
        "state": state,
        "name": run.name,
        "times": {**before.times, state: time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        "pid": os.getpid(),
        **_origin(run),
        "fingerprints": dict(run.fingerprints),
        **{key: getattr(before, key) for key in (*_KEPT, *(() if state == "running" else _TRAINED))},
        **details,
    }
    record = dataclasses.asdict(Status(**values))
    write_record(run.folder.status, {key: value for key, value in record.items() if value not in _EMPTY})


def _known(folder: RunFolder) -> Status:
    """The status before; nothing if it was damaged while this process held the run."""
    try:
        return read_status(folder)
    except SaeSweepError as error:
        log.warning("%s: it is written again", error)
        return Status("pending", run_id=None)


@contextmanager
def prepared(runs: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
    """Hold and freeze runs, and set those that are not done to pending; yields those that can be trained.

    A run whose folder cannot be written is left out, which is logged; the others go on.

    Raises:
        SaeSweepError: if a folder is in use or holds another run, or none can be written, or the system does
            not allow to hold so many.
    """
    allow_holding(len(runs))
    ready, problems = [], {}
    with ExitStack() as held:
        for run in runs:
            try:
                held.enter_context(hold(run.folder))
                freeze(run)
                if state(run.folder) != "done":
                    set_state(run, "pending", job=None)
                ready.append(run)
            except DiskError as error:
                problems[run.name] = error
        if problems and not ready:
            raise next(iter(problems.values()))
        for name, problem in problems.items():
            log.error("%s is left out: %s", name, problem)
        yield ready


def prepare(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Prepare runs for other processes, like `prepared`, and let go of them."""
    with prepared(runs) as ready:
        return ready


def evaluation_keys(config: RunConfig) -> dict[str, Any]:
    """The keys that an evaluation depends on, as `metrics.json` records them."""
    return dataclasses.asdict(config.evaluation)


def is_complete(run: PlannedRun) -> bool:
    """Whether a run is done, and evaluated as its config says."""
    if state(run.folder) != "done":
        return False
    try:
        return read_metrics(run.folder, run.run_id).evaluation == evaluation_keys(run.config)
    except SaeSweepError:  # `readable` names it, once
        return False


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs that have not failed and are not complete; damaged ones are left alone."""
    return [run for run in runs if state(run.folder) not in ("failed", DAMAGED) and not is_complete(run)]


def report_failed(runs: Sequence[PlannedRun]) -> int:
    """Log what failed with a log file, one line per cause; returns the number of failed and damaged runs."""
    left = readable(runs)
    causes: dict[str | None, list[PlannedRun]] = {}
    for run in left:
        if state(run.folder) == "failed":
            causes.setdefault(read_status(run.folder).error, []).append(run)
    for failed in causes.values():
        names = ", ".join(run.name for run in failed[:_MOST_NAMED])
        more = f" and {len(failed) - _MOST_NAMED} more" if len(failed) > _MOST_NAMED else ""
        log.error("failed: %s%s (see %s)", names, more, pasted(failed[0].folder.log))
    return sum(map(len, causes.values())) + len(runs) - len(left)


def readable(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs whose status can be read; each other run is logged with the damage, and left out.

    Finished runs with damaged metrics are logged too: they are evaluated again.
    """
    found = []
    for run in runs:
        try:
            status = read_status(run.folder, run.run_id)
            found.append(run)
        except SaeSweepError as error:
            log.error("%s is left out: %s", run.name, error)
            continue
        if status.state == "done":
            _log_damaged_metrics(run)
    return found


def _log_damaged_metrics(run: PlannedRun) -> None:
    try:
        read_metrics(run.folder, run.run_id)
    except SaeSweepError as error:
        log.warning("%s is evaluated again: %s", run.name, error)
