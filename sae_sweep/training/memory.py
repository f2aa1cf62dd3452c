"""Finds out how many SAEs fit in memory together."""

import gc
from collections.abc import Sequence

import torch

from sae_sweep.activations import LMSizes
from sae_sweep.config import RunConfig, SaeSweepError
from sae_sweep.store.machine import free_memory
from sae_sweep.training.needs import REMEDIES, needs

_SHARE = 0.9
"""Share of the free memory that a group may use; the rest is for what the estimate omits."""


def release(device: torch.device) -> None:
    """Free the memory of earlier groups: collect reference cycles and empty torch's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: torch.device, sharers: int = 1) -> list[int]:
    """Free memory of the GPU and of the machine, within its container's limit; on a CPU only the latter.

    Args:
        device: where the SAEs are trained.
        sharers: number of processes that share the machine's memory; each has its own GPU.
    """
    release(device)
    machine = free_memory() // sharers
    return [torch.cuda.mem_get_info(device)[0], machine] if device.type == "cuda" else [machine]


def split(
    configs: Sequence[RunConfig], lm: LMSizes, free: Sequence[int], max_group: int | None = None
) -> list[list[int]]:
    """Split the positions of the configs into as few consecutive parts as fit in memory.

    Args:
        configs: configs of one group, in order.
        lm: sizes of the LM that they read.
        free: from `free_bytes`, before any member is built.
        max_group: maximum members per part; None: as many as fit.

    A member that does not fit even alone gets its own part; `refuse_too_large` says so before.
    """
    parts: list[list[int]] = [[]]
    for position, config in enumerate(configs):
        together = [configs[other] for other in parts[-1]] + [config]
        needed = needs(together, lm, on_cpu=len(free) == 1)
        full = any(need.bytes > _SHARE * have for need, have in zip(needed, free, strict=True))
        if parts[-1] and (full or len(parts[-1]) == max_group):
            parts.append([])
        parts[-1].append(position)
    return parts


def refuse_too_large(config: RunConfig, lm: LMSizes, free: Sequence[int]) -> None:
    """Raise SaeSweepError if a run cannot fit even alone, with the least that it may need."""
    for need, have in zip(needs([config], lm, on_cpu=len(free) == 1, least=True), free, strict=True):
        if need.bytes > have:
            what, size = need.largest
            raise SaeSweepError(
                f"it needs at least {_gib(need.bytes)} of memory, and {_gib(have)} are free; "
                f"most of it is for {what} ({_gib(size)}): {REMEDIES[what]}"
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
