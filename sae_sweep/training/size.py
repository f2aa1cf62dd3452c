"""Refuses runs that cannot exist on this machine, before they fill its memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from sae_sweep.config import ConfigError, RunConfig
from sae_sweep.training.memory import member_bytes

_GIB = 2**30
_NARROWEST_BYTES = 2
"""Bytes of an activation in the smallest dtype."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def refuse_impossible(config: RunConfig, d_in: int, device: torch.device) -> None:
    """Refuse a run whose parameters and buffer alone exceed all memory of the device.

    Linux grants such an allocation and ends the process when it is used.

    Raises:
        ConfigError: naming the keys to lower, or what else only the width of the model shows.
    """
    if problems := config.size_problems(d_in):
        raise ConfigError(problems)
    parameters, buffer = member_bytes(config, d_in), buffer_bytes(config, d_in)
    total = total_bytes(device)
    if parameters + buffer > total:
        raise ConfigError(
            [
                f"dictionary={config.dictionary} (d_sae={config.dictionary * d_in}) needs "
                f"{parameters / _GIB:.1f} GiB, and activations.buffer_tokens="
                f"{config.activations.buffer_tokens} with batch={config.batch} {buffer / _GIB:.1f} GiB, but "
                f"{device.type} has {total / _GIB:.1f} GiB: lower them"
            ]
        )


def buffer_bytes(config: RunConfig, d_in: int) -> int:
    """Least memory of the activations that are shuffled together, for one layer."""
    tokens = max(config.activations.buffer_tokens, 2 * config.batch)
    return tokens * d_in * _NARROWEST_BYTES


def total_bytes(device: torch.device) -> int:
    """All memory of the GPU, or of the machine within its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([psutil.virtual_memory().total, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """Yield the limit of each control group (v2) of this process that has one."""
    with suppress(OSError):
        own = next((line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
        folder = _CGROUP / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(_CGROUP):
                with suppress(OSError, ValueError):  # no limit ("max"), or no such file here
                    yield int((place / "memory.max").read_text())
