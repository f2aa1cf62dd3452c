"""Straight-through gradients to JumpReLU's thresholds, whose true gradients are zero almost everywhere.

Definitions.md 1.3 (arXiv 2407.14435, section 4): with K(u) = 1 for |u| < 1/2, else 0, and bandwidth ε,

    ∂f/∂θ := -(θ/ε) K((z-θ)/ε)        for f = z·1(z > θ)
    ∂H/∂θ := -(1/ε) K((z-θ)/ε)        for H = 1(z > θ)

The gradient of f to z is the true one, 1(z > θ). H has none to z, so the L0 penalty moves only thresholds.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor


def jump(
    z: Float[Tensor, "*latents"], threshold: Float[Tensor, "*thresholds"], bandwidth: float
) -> Float[Tensor, "*latents"]:
    """z·1(z > θ), with the straight-through gradient to θ.

    z is [batch, d_sae] with θ [d_sae], or both are [nnz].
    """
    return cast(Tensor, _Jump.apply(z, threshold, bandwidth))


def heaviside(
    z: Float[Tensor, "*latents"], threshold: Float[Tensor, "*thresholds"], bandwidth: float
) -> Float[Tensor, "*latents"]:
    """1(z > θ), with the straight-through gradient to θ and none to z."""
    return cast(Tensor, _Heaviside.apply(z, threshold, bandwidth))


def _kernel(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((z - threshold) / bandwidth).abs() < 0.5


def _sum_to(threshold: Tensor, by_latent: Tensor) -> Tensor:
    return by_latent if by_latent.dim() == threshold.dim() else by_latent.sum(dim=0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = _sum_to(threshold, grad * _kernel(z, threshold, ctx.bandwidth))
        return grad * (z > threshold), -(threshold / ctx.bandwidth) * near, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = _sum_to(threshold, grad * _kernel(z, threshold, ctx.bandwidth))
        return None, -near / ctx.bandwidth, None
