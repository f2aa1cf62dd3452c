"""Devices and dtypes: what `auto` means on this machine. Needs torch, not TransformerLens."""

import torch

from sae_sweep.config import SaeSweepError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device for a value of `device`; auto is cuda, else mps, else cpu.

    Raises:
        SaeSweepError: if this machine does not have it.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in here.items() if available)
    if not here[name]:
        have = ", ".join(kind for kind, available in here.items() if available)
        raise SaeSweepError(f"device={name}: this machine has {have} only")
    return torch.device(name)


def device_kind(device: torch.device) -> str:
    """Return the kind of device, whose products differ from another kind's in their last bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        amx = " AMX" if torch.cpu.get_capabilities().get("amx_bf16") else ""
        return f"cpu {torch.backends.cpu.get_cpu_capability()}{amx}"
    return device.type


def lm_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for a value of `model.dtype`; auto is bfloat16 if the hardware is fast at it."""
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16; emulation is far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as configs spell it."""
    return str(dtype).removeprefix("torch.")
