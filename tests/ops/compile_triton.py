"""Compiles all Triton kernels for an H200, with or without one, and prints their names.

Launches only compile; tensors are on the CPU and stay unchanged.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sae_sweep.ops import AdamUpdate
from sae_sweep.ops.triton import TritonKernels

BATCH, D_IN, D_SAE, K = 8, 768, 4096, 16


class NoGPU:
    """The part of a driver that Triton calls before a launch."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    driver.set_active(NoGPU())
    run = JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        run(self, *args, warmup=True, **kwargs)
        sys.stdout.write(f"{self.__name__}\n")

    JITFunction.run = compile_only
    torch.empty = torch.zeros  # `encode_above` reads counts back
    kernels = TritonKernels("cpu")
    x, W, b = torch.zeros(BATCH, D_IN), torch.zeros(D_SAE, D_IN), torch.zeros(D_SAE)
    for bias in (None, b):
        encoded = kernels.encode_topk(x, W, bias, K)
    encoded.csr.indices.zero_()
    kernels.encode_above(x, W, b, b, 10**9)
    kernels.topk(x, K)
    transposed, permutation = kernels.transpose(encoded.csr)
    kernels.spmm(encoded.csr, encoded.values, W)
    kernels.spmm(transposed, encoded.values[permutation], x)
    kernels.sddmm(encoded.csr, x, W)
    for tangent, unit_rows in ((False, None), (True, "before"), (True, "after")):
        update = AdamUpdate(1e-3, (0.9, 0.999), 1e-8, 1, tangent=tangent, unit_rows=unit_rows)
        kernels.adam(W, W, (W, W), update)


if __name__ == "__main__":
    main()
