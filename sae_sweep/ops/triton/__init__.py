"""CUDA kernels in Triton, compiled for the present GPU at first use."""

from sae_sweep.config import SaeSweepError

try:
    from sae_sweep.ops.triton.kernels import TritonKernels
except ImportError as error:
    raise SaeSweepError(f"triton cannot be imported: {error}") from error

__all__ = ["TritonKernels"]
