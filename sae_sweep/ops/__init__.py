"""The sparse products of a training step, in kernels that are fast and equal to their dense definitions."""

from sae_sweep.ops.choose import choose_kernels
from sae_sweep.ops.code import Code, Kernels
from sae_sweep.ops.functions import decode, mean_square, pre_activations, spread

__all__ = ["Code", "Kernels", "choose_kernels", "decode", "mean_square", "pre_activations", "spread"]
