"""Estimates how many SAEs fit in memory together."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from sae_sweep.config import KEPT_RESIDUALS_BYTES, RunConfig

_FLOAT = 4
_COPIES = 4
"""Copies of every parameter: itself, its gradient, and Adam's two moments."""
_DENSE = 8
"""Peak number of batch x d_sae arrays in a step; members step in turn, so they count once."""
_SHARE = 0.9
"""Share of the free memory that a group may use; the rest is for what the estimate omits."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def release(device: torch.device) -> None:
    """Free the memory of earlier groups: collect reference cycles and empty torch's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device, sharers: int = 1) -> int:
    """Free memory of the GPU, or of the machine within its container's limit.

    Args:
        device: where the SAEs are trained.
        sharers: number of processes that share the machine's memory; each has its own GPU.
    """
    release(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_container_bytes()]) // sharers


def _container_bytes() -> Iterator[int]:
    """Yield the memory left in each control group (v2) of this process; page cache counts as free."""
    with suppress(OSError):
        own = next((line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
        folder = _CGROUP / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(_CGROUP):
                with suppress(OSError, ValueError):  # no limit ("max"), or no such files here
                    limit, used = (int((place / f"memory.{name}").read_text()) for name in ("max", "current"))
                    yield limit - used + _inactive_file(place)


def _inactive_file(place: Path) -> int:
    lines = (place / "memory.stat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def member_bytes(config: RunConfig, d_in: int) -> int:
    """Memory that one SAE holds throughout training: parameters, gradients, moments."""
    d_sae = config.dictionary * d_in
    return _COPIES * _FLOAT * (2 * d_in * d_sae + 2 * d_sae + d_in)


def shared_bytes(configs: Sequence[RunConfig], d_in: int) -> int:
    """Memory that the members share.

    The buffer of every layer, one step's dense arrays, and the held-out residuals that the evaluation keeps.
    """
    buffer = max(config.activations.buffer_tokens for config in configs) * d_in * _FLOAT
    layers = len({config.layer for config in configs})
    step = max(config.batch * config.dictionary * d_in for config in configs) * _DENSE * _FLOAT
    held_out = max(config.evaluation.tokens for config in configs) * d_in * _FLOAT
    return buffer * layers + step + (held_out if held_out <= KEPT_RESIDUALS_BYTES else 0)


def split(
    configs: Sequence[RunConfig], d_in: int, available: int, max_group: int | None = None
) -> list[list[int]]:
    """Split the positions of the configs into as few consecutive parts as fit in memory.

    Args:
        configs: configs of one group, in order.
        d_in: width of the residual stream.
        available: free bytes before any member is built.
        max_group: maximum members per part; None: as many as fit.

    A member that does not fit even alone gets its own part, and fails alone.
    """
    usable = _SHARE * available
    parts: list[list[int]] = [[]]
    for position, config in enumerate(configs):
        together = [configs[other] for other in parts[-1]] + [config]
        needed = sum(member_bytes(one, d_in) for one in together) + shared_bytes(together, d_in)
        full = len(parts[-1]) == max_group or needed > usable
        if parts[-1] and full:
            parts.append([])
        parts[-1].append(position)
    return parts
