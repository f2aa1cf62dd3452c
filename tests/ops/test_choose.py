"""Which kernels a training run gets, and its warnings."""

from pathlib import Path

import pytest
import torch

from sae_sweep.config import SaeSweepError
from sae_sweep.ops import choose, choose_kernels
from sae_sweep.signals import Interrupted, stop_signals

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _empty_caches():
    """Forget loaded kernels and past warnings, before and after."""
    for cached in (choose._load, choose._load_or_warn):
        cached.cache_clear()
    yield
    for cached in (choose._load, choose._load_or_warn):
        cached.cache_clear()


def test_auto_on_a_cpu_is_cpu(tmp_path: Path):
    kernels = choose_kernels("auto", CPU, tmp_path).kernels
    assert kernels is not None
    assert kernels.name == "cpu"
    assert choose_kernels("cpu", CPU, tmp_path).kernels is kernels
    assert choose_kernels("reference", CPU, tmp_path).kernels is None


def test_other_devices_use_the_formulas(tmp_path: Path):
    assert choose_kernels("auto", torch.device("mps"), tmp_path) == (None, None)


def test_a_backend_for_another_device(tmp_path: Path):
    with pytest.raises(
        SaeSweepError, match=r"backend=triton runs on cuda, and device is cpu: set backend=auto"
    ):
        choose_kernels("triton", CPU, tmp_path)


def test_without_a_compiler_it_warns_once(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert choose_kernels("auto", CPU, tmp_path).kernels is None
    assert choose_kernels("auto", CPU, tmp_path).kernels is None
    assert caplog.text.count("training without fast kernels") == 1
    assert choose_kernels("auto", CPU, tmp_path).name == "reference"
    assert "compiler did not run" in str(choose_kernels("auto", CPU, tmp_path).fell_back)
    with pytest.raises(SaeSweepError, match="compiler did not run"):
        choose_kernels("cpu", CPU, tmp_path)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_compiler_that_a_ctrl_c_ended_is_not_missing(tmp_path: Path, monkeypatch, caplog, backend):
    """The keys reach every process of the terminal; the run stops, and is neither slow nor failed."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nkill -INT "$PPID"\nkill -KILL $$\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    trained = []

    def train() -> None:
        choose_kernels(backend, CPU, tmp_path / "cache")
        trained.append("on")

    with pytest.raises(Interrupted), stop_signals() as stop, stop.deferred():
        train()
    assert not trained
    assert not caplog.messages


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch, caplog):
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do [ $# = 0 ] && exit; shift; done; echo junk > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert choose_kernels("auto", CPU, tmp_path).kernels is None
    assert "the compiled kernels cannot be loaded" in caplog.text
    assert str(tmp_path / "kernels") in caplog.text


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, caplog):
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file")
    assert choose_kernels("auto", CPU, in_the_way).kernels is None
    assert caplog.text.count("training without fast kernels") == 1
