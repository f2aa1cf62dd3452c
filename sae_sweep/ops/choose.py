"""Which kernels a training uses."""

import logging
from functools import cache
from pathlib import Path

import torch

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.interface import Kernels

logger = logging.getLogger(__name__)


def choose_kernels(backend: str, device: torch.device, folder: Path) -> Kernels | None:
    """The kernels for a device; None: the plain dense formulas.

    Args:
        backend: reference; cpu or triton; or auto: what the device can have, else the reference, said once.
        device: where the SAE is.
        folder: the cache folder, which keeps compiled kernels.

    Raises:
        SaeSweepError: if a backend that was asked for by name is not to be had, or not on this device.
    """
    wanted = {"cpu": "cpu", "cuda": "triton"}.get(device.type) if backend == "auto" else backend
    if wanted is None or wanted == "reference":
        return None
    needs = {"cpu": "cpu", "triton": "cuda"}[wanted]
    if device.type != needs:
        raise SaeSweepError(
            f"backend={wanted} runs on {needs}, and device is {device.type}: set backend=auto"
        )
    try:
        return _load(wanted, folder)
    except SaeSweepError as error:
        if backend != "auto":
            raise
        _say_once(str(error))
        return None


@cache
def _load(backend: str, folder: Path) -> Kernels:
    if backend == "cpu":
        from sae_sweep.ops.cpu import CPUKernels

        return CPUKernels(folder)
    from sae_sweep.ops.triton import TritonKernels

    return TritonKernels()


@cache
def _say_once(problem: str) -> None:
    logger.warning("training without fast kernels, several times slower: %s", problem)
