"""Kernels for a CPU, in C++: compiled for this very machine, once."""

from sae_sweep.ops.cpu import build
from sae_sweep.ops.cpu.kernels import CPUKernels

__all__ = ["CPUKernels", "build"]
