"""Losses of a language model whose residual stream is replaced: by an SAE's reconstruction, or by a constant.

Special tokens are treated alike everywhere: a masked position keeps its original activation when the
residual stream is patched, and is left out of every average. The next-token loss at position t counts if
and only if t is unmasked, whether or not the next token is special. The last position of a sequence
predicts nothing, so it counts in every average except those of the loss.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.statistics import divide
from sae_sweep.config import KEPT_RESIDUALS_BYTES, SaeSweepError

BATCH_TOKENS = 2048
"""LM positions per batch: their logits are the largest tensor (400 MB at GPT-2's vocabulary)."""


class LanguageModelLosses(Protocol):
    """The part of a language model that the evaluation uses."""

    def losses(
        self,
        tokens: Tensor,
        layer: int | None = None,
        replace: Callable[[Tensor], Tensor] | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Next-token cross-entropy [b, s - 1] with the residual [b, s, d] of `layer` replaced.

        `replace` may be called several times, for consecutive parts of the batch. `residual` is given if an
        earlier pass over the same batch has computed it.
        """
        ...


class Baselines(NamedTuple):
    """Losses of the language model without an SAE, the same for every SAE at one hook."""

    ce_clean: float
    """Mean next-token cross-entropy in nats."""
    ce_zero: float
    """Mean cross-entropy with the unmasked residuals set to 0."""
    ce_mean: float
    """Mean cross-entropy with the unmasked residuals set to their mean."""
    mean_norm: float
    """Mean norm of the unmasked residuals."""
    residuals: Float[Tensor, "n seq d_model"] | None = None
    """Residuals of the untouched model; None at layer 0, above 1 GiB, and after they are freed."""


def language_model_baselines(
    lm: LanguageModelLosses,
    tokens: Int[np.ndarray, "n seq"],
    layer: int,
    mask: Bool[np.ndarray, "n seq"],
    device: torch.device,
) -> Baselines:
    """Losses of the untouched model and of both ablations: three passes, shared by all SAEs at this hook.

    The first pass keeps the residuals, so that the others, and those of the SAEs, can start at the hook.
    """
    check_tokens(tokens, mask)
    total: list[Tensor] = []
    residuals: Tensor | None = None
    done, norms = 0, 0.0

    def record(x: Tensor, keep: Tensor) -> Tensor:
        nonlocal residuals, done, norms
        kept = x[keep].cpu().double()
        total.append(kept.sum(0))
        norms += kept.norm(dim=-1).sum().item()
        if not done and layer and tokens.size * x.shape[-1] * x.element_size() <= KEPT_RESIDUALS_BYTES:
            residuals = x.new_empty(len(tokens), *x.shape[1:])
        if residuals is not None:
            residuals[done : done + len(x)] = x
        done += len(x)
        return x

    clean = mean_loss(lm, tokens, layer, mask, device, record)
    mean = (torch.stack(total).sum(0) / int(mask.sum())).to(device, torch.float32)

    def ablated(value: Tensor) -> float:
        return mean_loss(lm, tokens, layer, mask, device, lambda x, keep: patched(x, keep, value), residuals)

    mean_norm = norms / int(mask.sum())
    return Baselines(clean, ablated(torch.zeros_like(mean)), ablated(mean), mean_norm, residuals)


def mean_loss(
    lm: LanguageModelLosses,
    tokens: np.ndarray,
    layer: int,
    mask: np.ndarray,
    device: torch.device,
    replace: Callable[[Tensor, Tensor], Tensor],
    residuals: Tensor | None = None,
) -> float:
    """Mean loss over unmasked positions, in float64; `replace` gets the residuals and their mask."""
    total, count = 0.0, 0
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    with torch.no_grad():
        for start in range(0, len(tokens), size):
            ids = torch.from_numpy(np.ascontiguousarray(tokens[start : start + size])).long().to(device)
            keep = torch.from_numpy(np.ascontiguousarray(mask[start : start + size])).to(device)
            known = None if residuals is None else residuals[start : start + size]
            losses = lm.losses(ids, layer, _in_parts(replace, keep), known)
            counted = losses[keep[:, :-1]]
            total += counted.cpu().double().sum().item()
            count += len(counted)
    return divide(total, count)


def _in_parts(
    replace: Callable[[Tensor, Tensor], Tensor], keep: Bool[Tensor, "b s"]
) -> Callable[[Tensor], Tensor]:
    """Pass `replace` the mask of the sequences it gets: the LM may run a batch in consecutive parts."""
    done = 0

    def patch(x: Tensor) -> Tensor:
        nonlocal done
        part = keep[done : done + len(x)]
        done += len(x)
        return replace(x, part)

    return patch


def patched(x: Float[Tensor, "b s d"], keep: Bool[Tensor, "b s"], values: Tensor) -> Float[Tensor, "b s d"]:
    """x with `values` ([kept, d], or one [d] for all) at the positions in `keep`."""
    result = x.clone()
    result[keep] = values.to(x.dtype)
    return result


def check_tokens(tokens: np.ndarray, mask: np.ndarray) -> None:
    """Raise SaeSweepError unless there are tokens to evaluate, and a mask of the same shape."""
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise SaeSweepError(
            f"evaluation: tokens {tokens.shape} and mask {mask.shape} must both be [n, seq_len]"
        )
    if mask[:, :-1].sum() < 2:
        raise SaeSweepError(
            f"evaluation: the held-out text has {int(mask.sum())} tokens that are not special: "
            "give a dataset with more text, or raise evaluation.tokens"
        )
