"""Evaluation of an SAE on held-out text: reconstruction, features, and the language model's loss.

Special tokens are treated alike everywhere: a masked position keeps its original activation when the
residual stream is patched, and is left out of every average. The next-token loss at position t counts if
and only if t is unmasked, whether or not the next token is special. The last position of a sequence
predicts nothing, so it counts in every average except those of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.statistics import (
    Errors,
    FeatureStatistics,
    Histogram,
    ReconstructionError,
    divide,
    rare_tokens,
)
from sae_sweep.config import KEPT_RESIDUALS_BYTES, EvaluationConfig, SaeSweepError

BATCH_TOKENS = 2048
"""LM positions per batch: their logits are the largest tensor (400 MB at GPT-2's vocabulary)."""


class NormalisedInput(Protocol):
    """A batch in SAE-input space, and how to undo the normalisation."""

    @property
    def x(self) -> Tensor: ...

    def undo(self, y: Tensor) -> Tensor: ...


class Autoencoder(Protocol):
    """The part of an SAE that the evaluation uses."""

    @property
    def W_dec(self) -> Tensor: ...  # noqa: N802  (the field's own name)

    def normalise(self, x: Tensor) -> NormalisedInput: ...

    def encode(self, x: Tensor) -> Tensor:
        """Raw residual to latents, in inference mode."""
        ...

    def decode_normalised(self, f: Tensor) -> Tensor:
        """Latents to SAE-input space."""
        ...


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


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`."""

    metrics: dict[str, float]
    """Averages over unmasked held-out tokens; NaN where undefined (nothing varies, nothing is lost).

    ce_clean, ce_sae, ce_zero, ce_mean: next-token cross-entropy in nats, untouched and with the residual
        replaced by the reconstruction, by 0, and by its mean over the held-out tokens.
    ce_delta: ce_sae - ce_clean.
    ce_recovered_zero, ce_recovered_mean: (ablated - ce_sae) / (ablated - ce_clean), of averaged losses.
        Zero ablation destroys so much that the recovered share is near 1 for nearly any SAE.
    explained_variance, ..._zero_latents: R² pooled over tokens in SAE-input space (residuals themselves with
        normalisation none), and what the SAE's bias explains with every latent at 0.
    explained_variance_raw, ..._raw_zero_latents: the same on raw residuals, where a few massive tokens
        hold most of the variance and the normalisation's mean and scale, which bypass the latents, explain
        much of it.
    mse, mse_sum: squared error in SAE-input space, averaged and summed over d_in. mse_raw, mse_raw_sum: raw.
    explained_variance_rare, mse_rare: explained variance and mse of the rarest tokens alone (`rare_tokens`).
    cosine, cosine_raw: cosine of input and reconstruction.
    l0, l1: norms of the latents in inference mode.
    alive, dead, dense, ultra_rare: numbers of features that fire, that never fire, whose density is above
        `evaluation.dense`, and whose density is above 0 but below `evaluation.ultra_rare`.
    density_floor: 1 / tokens, the smallest density that can be measured; if it is above
        `evaluation.ultra_rare`, no feature counts as ultra-rare.
    tokens: unmasked held-out tokens.
    """
    densities: Float[Tensor, " d_sae"]
    """Share of tokens on which each feature fires."""
    mean_activations: Float[Tensor, " d_sae"]
    """Mean activation of each feature over the tokens on which it fires; 0 for dead ones."""
    max_activations: Float[Tensor, " d_sae"]
    density_histogram: Histogram
    """Histogram of log10(density); the first bin, below the floor of 1 / tokens, holds the dead features."""
    activation_histogram: Histogram
    """Histogram of non-zero activations, in log-spaced bins."""

    @property
    def tokens(self) -> int:
        return int(self.metrics["tokens"])


def evaluate(
    sae: Autoencoder,
    lm: LanguageModelLosses,
    tokens: Int[np.ndarray, "n seq"],
    layer: int,
    mask: Bool[np.ndarray, "n seq"],
    config: EvaluationConfig | None = None,
    *,
    baselines: Baselines | None = None,
) -> Evaluation:
    """Evaluate an SAE, in inference mode, with one pass of the language model over held-out text.

    Args:
        sae: the SAE; everything is computed on its device.
        lm: the language model, on the same device.
        tokens: packed held-out sequences.
        layer: the layer whose residual stream the SAE was trained on.
        mask: True where a position counts, False at special tokens.
        config: thresholds for dense and ultra-rare features.
        baselines: from `language_model_baselines`, shared by all SAEs at this hook; computed (three more
            passes) if not given.

    Raises:
        SaeSweepError: if no tokens are left to evaluate, or activations or losses are not finite.
    """
    config = config or EvaluationConfig()
    _check_tokens(tokens, mask)
    device = sae.W_dec.device
    baselines = baselines or language_model_baselines(lm, tokens, layer, mask, device)
    features, errors = FeatureStatistics(len(sae.W_dec), device), Errors()
    rare, done = rare_tokens(tokens, mask), 0

    def splice(x: Tensor, keep: Tensor) -> Tensor:
        nonlocal done
        of_rare = torch.from_numpy(rare[done : done + len(x)]).to(device)[keep]
        done += len(x)
        return _patch(x, keep, _reconstruct(sae, x[keep].float(), of_rare, features, errors))

    ce_sae = _mean_loss(lm, tokens, layer, mask, device, splice, baselines.residuals)
    metrics = {
        **_loss_metrics(baselines, ce_sae),
        **_reconstruction_metrics(errors.normalised, ""),
        **_reconstruction_metrics(errors.raw, "_raw"),
        "explained_variance_rare": errors.rare.explained_variance,
        "mse_rare": errors.rare.mse,
        **_feature_metrics(features, config),
    }
    _check_finite(metrics, layer)
    return Evaluation(
        metrics=metrics,
        densities=features.densities,
        mean_activations=features.mean_activations,
        max_activations=features.max_activations,
        density_histogram=features.density_histogram(),
        activation_histogram=features.activation_histogram(),
    )


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
    _check_tokens(tokens, mask)
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

    clean = _mean_loss(lm, tokens, layer, mask, device, record)
    mean = (torch.stack(total).sum(0) / int(mask.sum())).to(device, torch.float32)

    def ablated(value: Tensor) -> float:
        return _mean_loss(lm, tokens, layer, mask, device, lambda x, keep: _patch(x, keep, value), residuals)

    mean_norm = norms / int(mask.sum())
    return Baselines(clean, ablated(torch.zeros_like(mean)), ablated(mean), mean_norm, residuals)


def _mean_loss(
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


def _patch(x: Float[Tensor, "b s d"], keep: Bool[Tensor, "b s"], values: Tensor) -> Float[Tensor, "b s d"]:
    """x with `values` ([kept, d], or one [d] for all) at the positions in `keep`."""
    patched = x.clone()
    patched[keep] = values.to(x.dtype)
    return patched


def _reconstruct(
    sae: Autoencoder,
    x: Float[Tensor, "tokens d_in"],
    rare: Bool[Tensor, " tokens"],
    features: FeatureStatistics,
    errors: Errors,
) -> Float[Tensor, "tokens d_in"]:
    """Reconstruct raw residuals, and add the batch to the accumulators."""
    if len(x) == 0:
        return x
    inputs, latents = sae.normalise(x), sae.encode(x)
    out = sae.decode_normalised(latents)
    out_of_zero = sae.decode_normalised(torch.zeros_like(latents[:1])).expand_as(out)
    x_hat = inputs.undo(out)
    features.update(latents)
    errors.normalised.update(inputs.x, out, out_of_zero)
    errors.raw.update(x, x_hat, inputs.undo(out_of_zero))
    if rare.any():
        errors.rare.update(inputs.x[rare], out[rare], out_of_zero[rare])
    return x_hat


def _loss_metrics(baselines: Baselines, ce_sae: float) -> dict[str, float]:
    clean, zero, mean = baselines.ce_clean, baselines.ce_zero, baselines.ce_mean
    return {
        "ce_clean": clean,
        "ce_sae": ce_sae,
        "ce_zero": zero,
        "ce_mean": mean,
        "ce_delta": ce_sae - clean,
        "ce_recovered_zero": divide(zero - ce_sae, zero - clean),
        "ce_recovered_mean": divide(mean - ce_sae, mean - clean),
    }


def _reconstruction_metrics(error: ReconstructionError, suffix: str) -> dict[str, float]:
    return {
        f"explained_variance{suffix}": error.explained_variance,
        f"explained_variance{suffix}_zero_latents": error.explained_variance_zero_latents,
        f"mse{suffix}": error.mse,
        f"mse{suffix}_sum": error.mse_sum,
        f"cosine{suffix}": error.cosine,
    }


def _feature_metrics(features: FeatureStatistics, config: EvaluationConfig) -> dict[str, float]:
    densities = features.densities
    alive = densities > 0
    return {
        "l0": features.l0,
        "l1": features.l1,
        "alive": float(alive.sum()),
        "dead": float((~alive).sum()),
        "dense": float((densities > config.dense).sum()),
        "ultra_rare": float((alive & (densities < config.ultra_rare)).sum()),
        "density_floor": 1 / features.tokens,
        "tokens": float(features.tokens),
    }


def _check_tokens(tokens: np.ndarray, mask: np.ndarray) -> None:
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise SaeSweepError(
            f"evaluation: tokens {tokens.shape} and mask {mask.shape} must both be [n, seq_len]"
        )
    if mask[:, :-1].sum() < 2:
        raise SaeSweepError(
            f"evaluation: the held-out text has {int(mask.sum())} tokens that are not special: "
            "give a dataset with more text, or raise evaluation.tokens"
        )


def _check_finite(metrics: dict[str, float], layer: int) -> None:
    """Refuse sums that are not finite: weights or activations are broken. Undefined ratios may be NaN."""
    sums = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "mse", "mse_raw", "l1")
    broken = [name for name in sums if not np.isfinite(metrics[name])]
    if broken:
        raise SaeSweepError(
            f"evaluation at layer {layer}: {', '.join(broken)} not finite: "
            "the SAE's weights or the activations hold NaN or inf"
        )
