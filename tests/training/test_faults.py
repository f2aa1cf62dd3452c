"""Recognition of what went wrong, by the words of torch, the drivers, Triton and the system."""

import errno

import numpy as np
import pytest
import torch

from sae_sweep.config import SaeSweepError
from sae_sweep.training import GroupTooLargeError, border, explain
from sae_sweep.training.faults import device_failed, kernel_failed, out_of_memory


def of_type(name: str, base: type[Exception], module: str) -> type[Exception]:
    return type(name, (base,), {"__module__": module})


AcceleratorError = of_type("AcceleratorError", RuntimeError, "torch")
OutOfResources = of_type(
    "OutOfResources", of_type("TritonError", Exception, "triton.errors"), "triton.runtime"
)
CompilationError = of_type("CompilationError", of_type("TritonError", Exception, "triton.errors"), "triton.c")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: out of memory (cudaHostAlloc)"),
        MemoryError(),
        MemoryError("std::bad_alloc"),
        np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)),  # type: ignore[attr-defined]
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_no_failed_device(error: Exception) -> None:
    assert out_of_memory(error)
    assert not device_failed(error)
    assert explain(error, "lower batch").startswith("memory ran out (")
    assert explain(error, "lower batch").endswith("): lower batch")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
def test_a_failed_device_is_no_lack_of_memory(error: Exception) -> None:
    assert device_failed(error)
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        SaeSweepError("dataset.path=out of memory: no such folder"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "out of memory.txt"),
        RuntimeError("value cannot be converted to type float without overflow"),
        ValueError("CUDA error"),
        IndexError("list index out of range"),
    ],
)
def test_other_errors_are_neither(error: Exception) -> None:
    assert not out_of_memory(error)
    assert not device_failed(error)
    assert not kernel_failed(error)


def test_a_kernel_that_does_not_run_names_the_way_without_it() -> None:
    small = OutOfResources("out of resource: shared memory, Required: 300000, Hardware limit: 232448.")
    bad = CompilationError("at 7:11:\n    x = tl.load(p)\n           ^\nPassManager::run failed")
    for error, cause in (
        (small, "OutOfResources: out of resource: shared memory, Required"),
        (bad, "CompilationError: PassManager::run failed"),
    ):
        assert kernel_failed(error)
        assert not out_of_memory(error)
        line = explain(error, "lower batch")
        assert cause in line
        assert "set backend=reference" in line
        assert "\n" not in line


def test_a_border_lets_through_what_concerns_more_than_its_run() -> None:
    lines: list[str] = []
    with border("a", lines.append, remedy="lower batch", together=False):
        raise MemoryError("std::bad_alloc")
    assert lines == ["memory ran out (std::bad_alloc): lower batch"]
    with pytest.raises(GroupTooLargeError), border("a", lines.append, remedy="", together=True):
        raise MemoryError("std::bad_alloc")
    with pytest.raises(RuntimeError, match="CUDA error"), border("a", lines.append, remedy="", together=True):
        raise RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(KeyboardInterrupt), border("a", lines.append, remedy="", together=True):
        raise KeyboardInterrupt
    assert len(lines) == 1
