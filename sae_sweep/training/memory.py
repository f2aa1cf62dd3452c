"""How many SAEs fit beside each other: reckoned before a group starts."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from sae_sweep.config import KEPT_RESIDUALS_BYTES, RunConfig

_FLOAT = 4
_COPIES = 4
"""Of every parameter: itself, its gradient, and Adam's two moments."""
_DENSE = 8
"""Arrays of batch x d_sae that one step holds at its height; members step one after the other."""
_SHARE = 0.9
"""Of the free memory that a group may plan with: the rest is for what is not counted here."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


class GroupTooLargeError(RuntimeError):
    """Memory ran out in a group of several: every member is saved, and can go on in a smaller group."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory; on a CPU it says so in a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "ALLOC_FAILED" in str(error)


def device_failed(error: RuntimeError) -> bool:
    """Whether the device itself is at fault, and nothing that follows in this process can be trusted."""
    return isinstance(error, torch.AcceleratorError) or str(error).startswith("CUDA error")


def release(device: torch.device) -> None:
    """Give back what earlier groups held: they form cycles, and torch keeps freed blocks for itself."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device, sharers: int = 1) -> int:
    """Memory that is free now: of the GPU, or of the machine as far as its container allows.

    Args:
        device: where the SAEs are trained.
        sharers: processes that divide a machine's memory; each has a GPU of its own.
    """
    release(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_container_bytes()]) // sharers


def _container_bytes() -> Iterator[int]:
    """What each control group (version 2) around this process still allows; page cache counts as free."""
    with suppress(OSError):
        own = next((line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
        folder = _CGROUP / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(_CGROUP):
                with suppress(OSError, ValueError):  # no limit ("max"), or not a control group of its own
                    limit, used = (int((place / f"memory.{name}").read_text()) for name in ("max", "current"))
                    yield limit - used + _inactive_file(place)


def _inactive_file(place: Path) -> int:
    lines = (place / "memory.stat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def member_bytes(config: RunConfig, d_in: int) -> int:
    """What one SAE holds from its first step to its last: parameters, gradients, moments."""
    d_sae = config.dictionary * d_in
    return _COPIES * _FLOAT * (2 * d_in * d_sae + 2 * d_sae + d_in)


def shared_bytes(configs: Sequence[RunConfig], d_in: int) -> int:
    """What the members use in turn or together.

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
    """Positions of the configs, in order, in as few consecutive parts as fit.

    Args:
        configs: of one group, in order.
        d_in: width of the residual stream.
        available: bytes that are free before any member is built.
        max_group: most members of a part; None: what the memory allows.

    A member that does not fit even alone is a part of its own, and fails for itself.
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
