import pytest
import torch

from sae_sweep.activations import device, pick_device
from sae_sweep.config import SaeSweepError

CPU = torch.device("cpu")


def test_auto_takes_bfloat16_only_where_it_is_fast(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert device.lm_dtype("auto", CPU) == torch.float32
    for feature in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda feature=feature: {feature: True})
        assert device.lm_dtype("auto", CPU) == torch.bfloat16
    for fast in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
        assert device.fast_bfloat16(torch.device("cuda")) is fast
    assert device.lm_dtype("auto", torch.device("mps")) == torch.float32


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(SaeSweepError, match="device=cuda: this machine has cpu only"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
