"""CPU kernels in C++, compiled once for each machine."""

from sae_sweep.ops.cpu.kernels import CPUKernels

__all__ = ["CPUKernels"]
