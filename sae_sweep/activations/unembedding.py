"""The unembedding of a language model with its final norm folded in: what a direction does to the logits."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import SaeSweepError

_CLOSE = 1e-2
"""Largest relative difference of the folded norm, and 1 - the least correlation of logits, that count as
rounding; a norm or logits of another form differ by far more."""

_PROBES = 32
"""Random vectors that a norm is measured on."""


class Unembedding:
    """Direct effects of directions of the residual stream on the logits, up to a positive factor per token.

    A LayerNorm subtracts a direction's mean over d_model, an RMSNorm does not; both multiply by their weight.
    What depends on the token is left out: the division by the norm of the residual, and a cap of the logits.
    So are biases, which no direction changes.
    """

    def __init__(self, gain: Float[Tensor, " d_model"], centred: bool, weight: Tensor) -> None:
        self._gain, self._centred, self._weight = gain, centred, weight

    def of_first(self, tokens: int) -> "Unembedding":
        """The same for the first tokens alone."""
        return Unembedding(self._gain, self._centred, self._weight[:tokens])

    @property
    def vocabulary(self) -> int:
        return len(self._weight)

    def effects(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocabulary"]:
        """Change of each logit per unit of a direction, less the mean change over the vocabulary."""
        centred = directions - directions.mean(1, keepdim=True) if self._centred else directions
        logits = (centred.to(self._gain.device) * self._gain) @ self._weight.float().T
        logits -= logits.mean(1, keepdim=True)
        return logits


def fold(
    norm: nn.Module, unembed: nn.Module, residuals: Tensor, logits: Tensor, cap: float | None
) -> Unembedding:
    """Fold a final norm into the unembedding.

    Args:
        norm: the final norm; what it does is measured.
        unembed: the linear map to the logits.
        residuals: some final residuals, [n, d_model].
        logits: the model's logits of them, [n, vocabulary].
        cap: soft cap of the logits, if there is one.

    Raises:
        SaeSweepError: if norm and unembedding do not give these logits.
    """
    gain, bias, centred = _measured(copy.deepcopy(norm).float(), residuals.shape[-1], residuals.device)
    weight = getattr(unembed, "weight", None)
    if weight is None or weight.shape != (logits.shape[-1], residuals.shape[-1]):
        raise SaeSweepError("its unembedding is no matrix of vocabulary x d_model")
    found = Unembedding(gain, centred, weight.detach())
    expected = logits.float()
    if cap:
        expected = cap * (expected / cap).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    residuals = residuals.float()
    centres = residuals - residuals.mean(-1, keepdim=True) if centred else residuals
    ours = (centres / centres.square().mean(-1, keepdim=True).sqrt() * gain + bias) @ weight.float().T
    if getattr(unembed, "bias", None) is not None:
        ours += unembed.bias
    agreement = _correlation(ours, expected)
    agreement = agreement[residuals.norm(dim=-1) > 0]  # that of a padding token may be 0
    if not len(agreement) or not (agreement > 1 - _CLOSE).all():
        raise SaeSweepError("its logits are not the unembedding of its final norm")
    return found


def _measured(norm: Any, d_model: int, device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """Factor and bias of a norm, and whether it subtracts the mean, from what it does to random vectors.

    The factor is its weight in most models, 1 + weight in Gemma, and 1 where it has none.
    """
    probes = torch.randn(_PROBES, d_model, generator=torch.Generator().manual_seed(0)).to(device)
    probes = 100 * (1 + probes)  # whose mean only a LayerNorm subtracts; an epsilon is negligible
    plus, minus = norm(probes), norm(-probes)
    half, bias = (plus - minus) / 2, (plus + minus).mean(0) / 2
    for centred in (True, False):
        x = probes - probes.mean(1, keepdim=True) if centred else probes
        x = x / x.square().mean(1, keepdim=True).sqrt()
        gain = (half * x).sum(0) / x.square().sum(0)
        if (half - gain * x).norm() <= _CLOSE * half.norm():
            return gain, bias, centred
    raise SaeSweepError("its final norm is neither a LayerNorm nor an RMSNorm")


def _correlation(a: Tensor, b: Tensor) -> Float[Tensor, " n"]:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return nn.functional.cosine_similarity(a, b, dim=1)
