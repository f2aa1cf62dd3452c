"""Kernels for CUDA, in Triton: compiled for the GPU at hand when first used."""

from sae_sweep.config import SaeSweepError

try:
    from sae_sweep.ops.triton.kernels import TritonKernels
except ImportError as error:
    raise SaeSweepError(f"triton cannot be imported: {error}") from error

__all__ = ["TritonKernels"]
