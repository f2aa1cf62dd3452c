"""What sets of an SAE's features do to the language model's loss: the loss without them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import Estimate, estimate
from sae_sweep.analysis.features import Residuals, Subject, Text, parts_of
from sae_sweep.analysis.losses import BATCH_TOKENS
from sae_sweep.config import SaeSweepError


@dataclass(frozen=True)
class Ablation:
    """The loss with the SAE spliced in and a set of its features at 0."""

    removed: str
    features: int
    density: float
    """Mean number of these features that are active at a token; what is removed of L0."""
    loss: float
    """Mean next-token cross-entropy in nats."""
    increase: Estimate
    """Over the loss with the whole SAE spliced in; its interval is over sequences."""


def ablate(
    subject: Subject,
    lm: Residuals,
    text: Text,
    sets: Mapping[str, Bool[Tensor, " d_sae"]],
    *,
    between: Callable[[], None] = lambda: None,
) -> list[Ablation]:
    """Measure the loss without each of some sets of features.

    Args:
        subject: the SAE, on the device of the model, and its layer.
        lm: the language model.
        text: what is read; one pass up to the layer, then one for each set from there on.
        sets: features that are put to 0 together, by name.
        between: called between batches, to obey a stop.

    Raises:
        SaeSweepError: if fewer than two sequences have a token that counts.
    """
    whole = {"nothing": torch.zeros(len(subject.sae.W_dec), dtype=torch.bool), **sets}
    losses: dict[str, list[Tensor]] = {name: [] for name in whole}
    active = dict.fromkeys(whole, 0.0)
    tokens = 0
    size = max(1, BATCH_TOKENS // text.seq_len)
    with torch.no_grad():
        for start in range(0, len(text.tokens), size):
            between()
            rows = slice(start, start + size)
            found, counts, read = _batch(subject, lm, text.tokens[rows], text.mask[rows], whole)
            tokens += read
            for name, each in found.items():
                losses[name].append(each)
                active[name] += counts[name]
    means = {name: torch.cat(each) for name, each in losses.items()}
    known = ~means["nothing"].isnan()
    if known.sum() < 2:
        raise SaeSweepError("ablation: fewer than two sequences have tokens to predict: read more text")
    return [
        Ablation(
            name,
            int(removed.sum()),
            active[name] / tokens,
            means[name][known].mean().item(),
            estimate((means[name] - means["nothing"])[known].float()),
        )
        for name, removed in whole.items()
    ]


def _batch(
    subject: Subject,
    lm: Residuals,
    tokens: np.ndarray,
    mask: np.ndarray,
    sets: Mapping[str, Bool[Tensor, " d_sae"]],
) -> tuple[dict[str, Float[Tensor, " sequences"]], dict[str, float], int]:
    """Mean loss of each sequence and active features removed, by set; and the tokens that count."""
    sae, layer, device = subject.sae, subject.layer, subject.sae.W_dec.device
    ids = torch.from_numpy(np.ascontiguousarray(tokens)).long().to(device)
    keep = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
    x = lm.residuals(ids, [layer])[layer]
    inputs, latents = sae.normalise(x[keep].float()), sae.encode(x[keep].float())
    found, counts = {}, {}
    for name, removed in sets.items():
        gone = removed.to(device)
        spliced = x.clone()
        spliced[keep] = inputs.undo(sae.decode_normalised(latents * ~gone)).to(x.dtype)
        each = lm.losses(ids, layer, parts_of(spliced), x)
        predicted = keep[:, :-1]
        found[name] = ((each * predicted).sum(1) / predicted.sum(1)).cpu().double()
        counts[name] = float((latents[:, gone] != 0).sum())
    return found, counts, int(keep.sum())
