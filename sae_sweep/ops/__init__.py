"""Sparse kernels of a training step: each backend computes what the dense definitions do, and faster."""

from sae_sweep.ops.choose import choose_kernels
from sae_sweep.ops.csr import CSR
from sae_sweep.ops.functions import (
    SparseMatrix,
    SparsePattern,
    decode,
    gather_columns,
    mean_square,
    pre_activations,
    tilted_mean,
    total_variance,
)
from sae_sweep.ops.interface import AdamUpdate, Encoded, Estimates, Kernels

__all__ = [
    "CSR",
    "AdamUpdate",
    "Encoded",
    "Estimates",
    "Kernels",
    "SparseMatrix",
    "SparsePattern",
    "choose_kernels",
    "decode",
    "gather_columns",
    "mean_square",
    "pre_activations",
    "tilted_mean",
    "total_variance",
]
