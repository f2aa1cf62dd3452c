"""Configs of initialisation, activations, optimiser and evaluation."""

from dataclasses import dataclass

from sae_sweep.config.checks import at_least, fraction, one_of
from sae_sweep.config.data import LM_DTYPES

ACTIVATION_SOURCES = ("stream", "cache")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its learning-rate schedule."""

    lr: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    warmup_fraction: float = 0.02
    """Share of the steps over which the rate rises linearly from 0."""
    decay_fraction: float = 0.2
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    clip_norm: float | None = None
    """Maximum gradient norm over all parameters of one SAE; null: not clipped."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if not self.lr > 0:
            found.append(f"optimizer.lr={self.lr}: must be above 0")
        fraction(found, "optimizer.warmup_fraction", self.warmup_fraction)
        fraction(found, "optimizer.decay_fraction", self.decay_fraction)
        if self.warmup_fraction + self.decay_fraction > 1:
            found.append("optimizer.warmup_fraction + optimizer.decay_fraction: above 1")
        return found


@dataclass(frozen=True)
class InitConfig:
    """Initialisation of an SAE."""

    shared: bool = True
    """True (the study): equal seeds at equal size share a dictionary at the start. False: none do."""
    b_dec: str = "zero"
    """Initial decoder bias: zero, or the mean or geometric_median of the first batch."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "init.b_dec", self.b_dec, ("zero", "mean", "geometric_median"))
        return found


@dataclass(frozen=True)
class ActivationsConfig:
    """Source and buffering of the activations."""

    source: str = "stream"
    """stream: computed by the LM on demand. cache: computed once, then read from `paths.cache`. The weights
    are the same."""
    buffer_tokens: int = 262_144
    """Approximate number of tokens in the buffer, inside which activations are shuffled."""
    lm_batch: int = 64
    """Sequences per LM forward pass."""
    dtype: str = "auto"
    """Dtype that activations are rounded to; auto: the LM's."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "activations.source", self.source, ACTIVATION_SOURCES)
        one_of(found, "activations.dtype", self.dtype, LM_DTYPES)
        at_least(found, "activations.buffer_tokens", self.buffer_tokens, 1)
        at_least(found, "activations.lm_batch", self.lm_batch, 1)
        return found


KEPT_RESIDUALS_BYTES = 2**30
"""Limit up to which the evaluation keeps a layer's held-out residuals, so that earlier layers run once."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The final evaluation on held-out text."""

    tokens: int = 200_000
    """Held-out tokens, special ones included; fewer where the held-out text is shorter."""
    ultra_rare: float = 1e-5
    """Features that fire, but on a smaller share of tokens than this, count as ultra-rare."""
    dense: float = 0.1
    """Features that fire on a larger share of tokens than this count as dense."""

    def problems(self) -> list[str]:
        found: list[str] = []
        at_least(found, "evaluation.tokens", self.tokens, 1)
        fraction(found, "evaluation.ultra_rare", self.ultra_rare)
        fraction(found, "evaluation.dense", self.dense)
        return found
