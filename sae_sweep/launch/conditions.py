"""How runs are trained on this machine, and whether a run that began under other conditions may go on."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_sweep.activations import LanguageModel
from sae_sweep.activations.device import device_kind, dtype_name
from sae_sweep.activations.stream import activation_dtype
from sae_sweep.config import LauncherConfig, RunConfig, SaeSweepError
from sae_sweep.ops import choose_kernels
from sae_sweep.store import PlannedRun, read_status
from sae_sweep.store.resolved import Conditions, Resolved
from sae_sweep.training import begun

log = logging.getLogger(__name__)

_KEYS = {"kernels": "backend", "lm_batch": "activations.lm_batch", "lm_dtype": "model.dtype"}
"""Config keys that set a value of `Resolved`."""


class OnMachine(NamedTuple):
    """How this machine runs a config."""

    resolved: Resolved
    fell_back: Mapping[str, str]
    """Why attention or kernels are not the fast ones."""


def resolve(lm: LanguageModel, config: RunConfig, cache: Path) -> OnMachine:
    """Find out how this machine runs a config, with the current number of threads.

    Args:
        lm: the loaded LM.
        config: config of a run that reads it.
        cache: folder that keeps compiled kernels.

    Raises:
        SaeSweepError: if a backend that the config names is not available.
    """
    kernels = choose_kernels(config.backend, lm.device, cache)
    reasons = {"attention": lm.fell_back, "kernels": kernels.fell_back}
    resolved = Resolved(
        device=device_kind(lm.device),
        lm_dtype=dtype_name(lm.dtype),
        activation_dtype=dtype_name(activation_dtype(config, lm)),
        attention=lm.attention,
        kernels=kernels.name,
        lm_batch=config.activations.lm_batch,
        threads=torch.get_num_threads(),
    )
    return OnMachine(resolved, {what: why for what, why in reasons.items() if why is not None})


def conditions(run: PlannedRun, here: OnMachine, launcher: LauncherConfig, job: int | None) -> Conditions:
    """How a run is trained here, with what changes if it began under other conditions.

    Args:
        run: the run; its folder holds the checkpoint that it resumes from, if any.
        here: how this machine runs it.
        launcher: says whether a run may go on under other conditions.
        job: number of this job; a job that comes back after a preemption goes on under any.

    Raises:
        SaeSweepError: naming what differs with both values, and the key that allows it.
    """
    earlier = begun(run.folder, run.run_id)
    if earlier is None:
        status = read_status(run.folder)
        if status.history is not None and status.resolved:  # it is only evaluated again
            as_trained = Resolved(**dict(status.resolved))  # type: ignore[arg-type]
            return Conditions(as_trained, tuple(status.mixed), status.fell_back, status.job)
        return Conditions(here.resolved, fell_back=here.fell_back, job=job)
    mixed = tuple(earlier.mixed)
    changes = here.resolved.changes_from(earlier.resolved)
    if changes:
        came_back = job is not None and read_status(run.folder).job == job
        if not (launcher.allow_mixed or came_back):
            raise SaeSweepError(_refusal(run, changes))
        log.warning(
            "%s: from step %d on with %s; it is recorded as mixed", run.name, earlier.step, _words(changes)
        )
        mixed += ({"step": earlier.step, **{name: list(both) for name, both in changes.items()}},)
    return Conditions(here.resolved, mixed, here.fell_back, job)


def _refusal(run: PlannedRun, changes: Mapping[str, tuple[Any, Any]]) -> str:
    settable = [f"{_KEYS[name]}={before}" for name, (before, _) in changes.items() if name in _KEYS]
    back = f"{' '.join(settable)} continues it unchanged where the machine can, " if settable else ""
    return (
        f"{run.name} began with other numerics: {_words(changes)}. {back}"
        "launcher.allow_mixed=true continues it here and records it as mixed"
    )


def _words(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {now} instead of {before}" for name, (before, now) in changes.items())


def by_threads(runs: Sequence[PlannedRun], launcher: LauncherConfig) -> dict[int, list[PlannedRun]]:
    """Sort runs by the number of threads that they begin with, or began with in an earlier launch."""
    usual = launcher.threads or torch.get_num_threads()
    sorted_runs: dict[int, list[PlannedRun]] = {}
    for run in runs:
        sorted_runs.setdefault(_begun_threads(run) or usual, []).append(run)
    return sorted_runs


def _begun_threads(run: PlannedRun) -> int | None:
    earlier = begun(run.folder, run.run_id)
    resolved = earlier.resolved if earlier is not None else read_status(run.folder).resolved
    threads = resolved.get("threads")
    return threads if isinstance(threads, int) else None


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Compute with a number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
