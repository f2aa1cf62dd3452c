"""How many SAEs fit beside each other: reckoned before a group starts."""

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from sae_sweep.config import Config

_FLOAT = 4
_COPIES = 4
"""Of every parameter: itself, its gradient, and Adam's two moments."""
_DENSE = 8
"""Arrays of batch x d_sae that one step holds at its height; members step one after the other."""
_SHARE = 0.9
"""Of the free memory that a group may plan with: the rest is for what is not counted here."""
_CGROUP = Path("/sys/fs/cgroup")


class GroupTooLargeError(RuntimeError):
    """Memory ran out in a group of several: every member is saved, and can go on in a smaller group."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory; on a CPU it says so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def available_bytes(device: torch.device) -> int:
    """Memory that is free now: of the GPU, or of the machine as far as its container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # not in a container, or in one without a limit ("max")
        return free
    return min(free, limit - used)


def member_bytes(config: Config, d_in: int) -> int:
    """What one SAE holds from its first step to its last: parameters, gradients, moments."""
    d_sae = config.dictionary * d_in
    return _COPIES * _FLOAT * (2 * d_in * d_sae + 2 * d_sae + d_in)


def shared_bytes(configs: Sequence[Config], d_in: int) -> int:
    """What the members use in turn or together: the buffer of every layer, and one step's dense arrays."""
    buffer = max(config.activations.buffer_tokens for config in configs) * d_in * _FLOAT
    layers = len({config.layer for config in configs})
    step = max(config.batch * config.dictionary * d_in for config in configs) * _DENSE * _FLOAT
    return buffer * layers + step


def split(
    configs: Sequence[Config], d_in: int, available: int, max_group: int | None = None
) -> list[list[int]]:
    """Positions of the configs, in order, in as few consecutive parts as fit.

    Args:
        configs: of one group, in order.
        d_in: width of the residual stream.
        available: bytes that are free before any member is built.
        max_group: most members of a part; None: what the memory allows.

    A member that does not fit even alone is a part of its own: its step says what it lacks.
    """
    room = _SHARE * available
    parts: list[list[int]] = [[]]
    for position, config in enumerate(configs):
        together = [configs[other] for other in parts[-1]] + [config]
        needed = sum(member_bytes(one, d_in) for one in together) + shared_bytes(together, d_in)
        full = len(parts[-1]) == max_group or needed > room
        if parts[-1] and full:
            parts.append([])
        parts[-1].append(position)
    return parts
