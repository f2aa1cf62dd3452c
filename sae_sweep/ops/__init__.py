"""The sparse products of a training step, in kernels that are fast and equal to their dense definitions."""

from sae_sweep.ops.choose import choose_kernels
from sae_sweep.ops.functions import Sparse, decode, mean_square, pre_activations, spread, total_variance
from sae_sweep.ops.interface import AdamUpdate, Code, Estimates, Found, Kernels

__all__ = [
    "AdamUpdate",
    "Code",
    "Estimates",
    "Found",
    "Kernels",
    "Sparse",
    "choose_kernels",
    "decode",
    "mean_square",
    "pre_activations",
    "spread",
    "total_variance",
]
