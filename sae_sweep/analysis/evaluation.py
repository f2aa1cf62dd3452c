"""Evaluation of an SAE on held-out text: reconstruction, features, and the language model's loss.

Which positions count is said in `analysis.losses`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.losses import (
    Baselines,
    LanguageModelLosses,
    check_tokens,
    language_model_baselines,
    mean_loss,
    patched,
)
from sae_sweep.analysis.statistics import (
    Errors,
    FeatureStatistics,
    Histogram,
    ReconstructionError,
    divide,
    rare_tokens,
)
from sae_sweep.config import EvaluationConfig, SaeSweepError


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
    check_tokens(tokens, mask)
    device = sae.W_dec.device
    baselines = baselines or language_model_baselines(lm, tokens, layer, mask, device)
    features, errors = FeatureStatistics(len(sae.W_dec), device), Errors()
    rare, done = rare_tokens(tokens, mask), 0

    def splice(x: Tensor, keep: Tensor) -> Tensor:
        nonlocal done
        of_rare = torch.from_numpy(rare[done : done + len(x)]).to(device)[keep]
        done += len(x)
        return patched(x, keep, _reconstruct(sae, x[keep].float(), of_rare, features, errors))

    ce_sae = mean_loss(lm, tokens, layer, mask, device, splice, baselines.residuals)
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


def _check_finite(metrics: dict[str, float], layer: int) -> None:
    """Refuse sums that are not finite: weights or activations are broken. Undefined ratios may be NaN."""
    sums = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "mse", "mse_raw", "l1")
    broken = [name for name in sums if not np.isfinite(metrics[name])]
    if broken:
        raise SaeSweepError(
            f"evaluation at layer {layer}: {', '.join(broken)} not finite: "
            "the SAE's weights or the activations hold NaN or inf"
        )
