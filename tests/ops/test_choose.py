"""Which kernels a training gets, and what it is told."""

from pathlib import Path

import pytest
import torch

from sae_sweep.config import SaeSweepError
from sae_sweep.ops import choose, choose_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forgetful():
    """What was chosen and said before is forgotten, before and after."""
    for remembered in (choose._load, choose._say_once):
        remembered.cache_clear()
    yield
    for remembered in (choose._load, choose._say_once):
        remembered.cache_clear()


def test_auto_on_a_cpu_are_the_cpus(tmp_path: Path):
    kernels = choose_kernels("auto", CPU, tmp_path)
    assert kernels is not None
    assert kernels.name == "cpu"
    assert choose_kernels("cpu", CPU, tmp_path) is kernels
    assert choose_kernels("reference", CPU, tmp_path) is None


def test_other_devices_use_the_formulas(tmp_path: Path):
    assert choose_kernels("auto", torch.device("mps"), tmp_path) is None


def test_a_backend_for_another_device(tmp_path: Path):
    with pytest.raises(
        SaeSweepError, match=r"backend=triton runs on cuda, and device is cpu: set backend=auto"
    ):
        choose_kernels("triton", CPU, tmp_path)


def test_without_a_compiler_it_is_said_once(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert choose_kernels("auto", CPU, tmp_path) is None
    assert choose_kernels("auto", CPU, tmp_path) is None
    assert caplog.text.count("training without fast kernels") == 1
    with pytest.raises(SaeSweepError, match="compiler did not run"):
        choose_kernels("cpu", CPU, tmp_path)
