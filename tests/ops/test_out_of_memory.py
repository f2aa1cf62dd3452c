"""An allocation that fails inside a kernel, also on OpenMP's threads, is a MemoryError; nothing leaks."""

import ctypes
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from sae_sweep.ops.cpu import CPUKernels, kernels
from sae_sweep.ops.cpu.binding import load_library
from sae_sweep.ops.cpu.compiler import FLAGS, SOURCES, find_compiler
from tests.ops.helpers import CPU_SCREENS, draw

CALLS = ["encode_topk", "encode_above", "encode_dead_topk", "topk"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels with allocations that fail on demand."""
    to = tmp_path_factory.mktemp("library") / "kernels.so"
    sources = [*SOURCES.glob("*.cpp"), Path(__file__).with_name("failing_new.cpp")]
    flags = [flag for flag in FLAGS if flag != "-O3"]
    command = [*find_compiler().command, *flags, "-Wl,-Bsymbolic", "-o", str(to), *map(str, sources)]
    subprocess.run(command, check=True)
    library = load_library(to.read_bytes())
    library.fail_after.argtypes, library.living.restype = [ctypes.c_int64, ctypes.c_bool], ctypes.c_int64
    return library


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def kernels_of(library: ctypes.CDLL, screen: str, monkeypatch: pytest.MonkeyPatch) -> CPUKernels:
    monkeypatch.setattr(kernels, "compiled_kernels", lambda cache: library)
    ours = CPUKernels(Path("/unused"), screen="float32")
    if screen == "int16" and not ours.has_int16:
        pytest.skip("this processor has no 16-bit screen")
    return CPUKernels(Path("/unused"), screen=screen)


def call(kernels: CPUKernels, name: str) -> Callable[[], object]:
    x, W, dead = draw(250, 9), draw(70, 9, seed=1), torch.arange(0, 70, 2)
    estimates = kernels.encode_topk(x, W, None, 3, dead).estimates
    calls: dict[str, Callable[[], object]] = {
        "encode_topk": lambda: kernels.encode_topk(x, W, None, 3),
        "encode_above": lambda: kernels.encode_above(x, W, None, torch.full((70,), 0.5), 10**6),
        "encode_dead_topk": lambda: kernels.encode_dead_topk(x, W[dead], None, 3, estimates),
        "topk": lambda: kernels.topk(x, 3),
    }
    return calls[name]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("screen", [screen.removeprefix("cpu-") for screen in CPU_SCREENS])
def test_an_allocation_that_fails_is_a_memory_error(library, screen, name, monkeypatch):
    """Wherever it fails: each round lets more of them succeed, until all do."""
    run = call(kernels_of(library, screen, monkeypatch), name)
    failures: list[str] = []
    try:
        for allowed in (int(1.5**power) - 1 for power in count()):
            library.fail_after(allowed, False)
            try:
                run()
                break
            except MemoryError as error:
                failures.append(str(error))
            assert library.living() == 0
    finally:
        library.fail_after(-1, False)
    assert all(failure.startswith("out of memory in the kernel ") for failure in failures)
    assert len(failures) > 3
    assert library.living() == 0


@pytest.mark.usefixtures("two_threads")
def test_any_other_exception_is_a_runtime_error(library, monkeypatch):
    run = call(kernels_of(library, "float32", monkeypatch), "encode_topk")
    library.fail_after(20, True)
    try:
        with pytest.raises(RuntimeError, match=r"the kernel encode_from_dense failed: something else$"):
            run()
    finally:
        library.fail_after(-1, False)
    assert library.living() == 0
