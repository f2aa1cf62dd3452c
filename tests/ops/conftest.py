"""One fixture for every backend that this machine can run."""

from collections.abc import Iterator

import pytest

from sae_sweep.ops.cpu import CPUKernels
from sae_sweep.store import cache_folder
from tests.ops.helpers import CPU_SCREENS, GPU, REFERENCE, TRITON, Backend


@pytest.fixture(scope="module", params=["reference", *CPU_SCREENS, TRITON])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "reference":
        yield Backend(request.param, REFERENCE)
    elif request.param == TRITON:
        yield from _triton()
    else:
        kernels = CPUKernels(cache_folder(None), screen="auto")
        screen = request.param.removeprefix("cpu-")
        if screen == "int16" and not kernels.has_int16:
            pytest.skip("this processor has no 16-bit screen")
        yield Backend(request.param, CPUKernels(cache_folder(None), screen=screen))


def _triton() -> Iterator[Backend]:
    """With small blocks, so that small shapes have several."""
    pytest.importorskip("triton")
    from sae_sweep.ops.triton import kernels

    device = "cuda" if GPU else "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BLOCK_TOKENS", 2)
        patch.setattr(kernels, "_CHUNK", 32)
        yield Backend(TRITON, kernels.TritonKernels(device), device)
