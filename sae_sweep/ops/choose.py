"""Which kernels a training run uses."""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.interface import Kernels
from sae_sweep.signals import raise_if_requested

logger = logging.getLogger(__name__)

_DEVICES = {"cpu": "cpu", "triton": "cuda"}
"""The device type that each backend runs on."""


class Choice(NamedTuple):
    """The kernels of a device, and why they are not the fast ones."""

    kernels: Kernels | None
    """None: the dense formulas in torch."""
    fell_back: str | None = None
    """Why `auto` did not find the device's own backend; None if it did, or if a backend was named."""

    @property
    def name(self) -> str:
        """reference, cpu or triton."""
        return self.kernels.name if self.kernels is not None else "reference"


def choose_kernels(backend: str, device: torch.device, folder: Path) -> Choice:
    """Choose the kernels for a device.

    Args:
        backend: reference (the dense formulas), cpu, triton, or auto: the device's own backend, else the
            dense formulas with one warning.
        device: the device that holds the SAE.
        folder: the cache folder, for compiled kernels.

    Raises:
        SaeSweepError: if a backend that was named is not available, or does not run on this device.
    """
    if backend == "auto":
        fast = next((name for name, kind in _DEVICES.items() if kind == device.type), None)
        return Choice(None) if fast is None else _load_or_warn(fast, folder)
    if backend == "reference":
        return Choice(None)
    if device.type != _DEVICES[backend]:
        raise SaeSweepError(
            f"backend={backend} runs on {_DEVICES[backend]}, and device is {device.type}: set backend=auto"
        )
    return Choice(_load(backend, folder))


@cache
def _load_or_warn(backend: str, folder: Path) -> Choice:
    try:
        return Choice(_load(backend, folder))
    except SaeSweepError as error:
        logger.warning("training without fast kernels, several times slower: %s", error)
        return Choice(None, str(error))


@cache
def _load(backend: str, folder: Path) -> Kernels:
    try:
        return _load_kernels(backend, folder)
    except SaeSweepError:
        raise_if_requested()  # a Ctrl-C also reaches the compiler, whose end then means nothing
        raise


def _load_kernels(backend: str, folder: Path) -> Kernels:
    if backend == "cpu":
        from sae_sweep.ops.cpu import CPUKernels

        return CPUKernels(folder)
    from sae_sweep.ops.triton import TritonKernels

    return TritonKernels()
