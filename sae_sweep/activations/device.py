"""Where arithmetic runs, and in which dtype; torch alone, no TransformerLens."""

import torch

from sae_sweep.config import SaeSweepError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device that `device=` means.

    Raises:
        SaeSweepError: if this machine has none.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in here.items() if available)
    if not here[name]:
        have = ", ".join(kind for kind, available in here.items() if available)
        raise SaeSweepError(f"device={name}: this machine has {have} only")
    return torch.device(name)


def lm_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `model.dtype` means: auto is bfloat16 where the hardware is fast at it."""
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether the hardware multiplies bfloat16 itself: emulated, it is far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as configs spell it."""
    return str(dtype).removeprefix("torch.")
