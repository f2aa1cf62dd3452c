"""Memory and disk that a plan needs, and what of it this machine does not have; no model is loaded.

Only what is certain counts: an SAE with its gradient, Adam's moments and its buffer of activations, and its
files. The language model, a training step and the evaluation come on top; training plans for them.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sae_sweep.config import ConfigError, RunConfig, SaeSweepError
from sae_sweep.plan.plan import Plan
from sae_sweep.report.formatting import size
from sae_sweep.store import PlannedRun
from sae_sweep.store.machine import free_disk, machine_memory

log = logging.getLogger(__name__)

_FLOAT = 4
_TRAINED = 4 * _FLOAT
"""Bytes per parameter in training: itself, its gradient, and Adam's two moments."""
_CHECKPOINT = 3 * _FLOAT
"""Bytes per parameter of a checkpoint: itself and the moments."""


class Room(NamedTuple):
    """What a plan needs and this machine has, in bytes; None where a model's width is not known yet."""

    memory: int | None
    """The least that the largest run needs."""
    results: int | None
    """Weights of all runs, the most of what stays on disk."""
    checkpoints: int | None
    """The most that checkpoints take for a while: two of each run of the largest group."""
    machine_memory: int | None
    """Memory of the device that trains; None on SLURM, whose nodes are not asked."""
    free_disk: int
    """Free bytes where the results go."""


def room(plan: Plan) -> Room:
    """Add up what the runs of a plan need beside what this machine has."""
    runs, groups = plan.runs, plan.groups()
    return Room(
        memory=_most(memory_bytes(run.config) for run in runs),
        results=_sum(_weights(run.config, _FLOAT) for run in runs),
        checkpoints=_most(_sum(_weights(run.config, 2 * _CHECKPOINT) for run in group) for group in groups),
        machine_memory=None if _on_other_machines(plan) else min(_memory_here(run.config) for run in runs),
        free_disk=free_disk(plan.folder.root),
    )


def lacking(plan: Plan, waiting: Sequence[PlannedRun]) -> list[str]:
    """Lines for what this machine does not have: memory for an SAE of some size, disk for the weights.

    Args:
        plan: the plan.
        waiting: its runs that are not done yet.
    """
    disk = _disk_problem(plan, waiting)
    return [*_memory_problems(plan, waiting), *([disk] if disk else [])]


def refuse_without_room(plan: Plan, waiting: Sequence[PlannedRun]) -> None:
    """Refuse what cannot be trained here before anything loads; warn if checkpoints may fill the disk.

    Raises:
        ConfigError: with the lines of `lacking`, if this machine can never hold some SAE.
        SaeSweepError: if the disk alone is too small now.
    """
    if _memory_problems(plan, waiting):
        raise ConfigError(lacking(plan, waiting))
    if disk := _disk_problem(plan, waiting):
        raise SaeSweepError(disk)
    groups = [[run for run in group if run in waiting] for group in plan.groups()]
    results = _sum(_weights(run.config, _FLOAT) for run in waiting) or 0
    checkpoints = _most(_sum(_weights(run.config, 2 * _CHECKPOINT) for run in group) for group in groups) or 0
    if results + checkpoints > (free := free_disk(plan.folder.root)):
        log.warning(
            "%s has %s free: weights take %s, and checkpoints up to %s for a while (the fewest with "
            "launcher.max_group=1); where the disk is full, runs stop, and the same command goes on",
            *(plan.folder.root, size(free), size(results), size(checkpoints)),
        )


def _memory_problems(plan: Plan, waiting: Sequence[PlannedRun]) -> list[str]:
    """A line for each size of SAE that this machine can never hold."""
    lines = [] if _on_other_machines(plan) else [_memory_problem(run.config) for run in waiting]
    return list(dict.fromkeys(line for line in lines if line))


def _disk_problem(plan: Plan, waiting: Sequence[PlannedRun]) -> str | None:
    results, free = _sum(_weights(run.config, _FLOAT) for run in waiting) or 0, free_disk(plan.folder.root)
    if results <= free:
        return None
    return (
        f"no disk space left for the weights of {len(waiting)} runs, {size(results)}, in "
        f"{plan.folder.root}, where {size(free)} are free: free some, set paths.output to another disk, or "
        "lower dictionary"
    )


def memory_bytes(config: RunConfig) -> int | None:
    """The least memory that a run needs; None if the model's width is unknown until it loads."""
    held = _weights(config, _TRAINED)
    if held is None or config.model.shape is None:
        return None
    streamed = min(config.activations.buffer_tokens, config.tokens) * (config.activations.source == "stream")
    return held + streamed * config.model.shape[1] * (_FLOAT if config.activations.dtype == "float32" else 2)


def _weights(config: RunConfig, bytes_each: int) -> int | None:
    return None if config.model.shape is None else bytes_each * config.parameters(config.model.shape[1])


def _memory_problem(config: RunConfig) -> str | None:
    needed, have = memory_bytes(config), _memory_here(config)
    if needed is None or needed <= have:
        return None
    return (
        f"dictionary={config.dictionary} on {config.model.label}: an SAE with its optimiser and activations "
        f"needs at least {size(needed)} of memory, and this machine has {size(have)}: lower dictionary or "
        "activations.buffer_tokens"
    )


def _memory_here(config: RunConfig) -> int:
    """Memory of the device that trains a run, whatever is in it now."""
    import torch

    from sae_sweep.activations import pick_device

    device = pick_device(config.device)
    if device.type != "cuda":
        return machine_memory()
    return int(torch.cuda.get_device_properties(device).total_memory)


def _on_other_machines(plan: Plan) -> bool:
    return plan.command.launcher.kind == "slurm"


def _sum(sizes: Iterable[int | None]) -> int | None:
    each = list(sizes)
    return None if None in each else sum(one or 0 for one in each)


def _most(sizes: Iterable[int | None]) -> int | None:
    each = list(sizes)
    return None if None in each else max((one or 0 for one in each), default=0)
