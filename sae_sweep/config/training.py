"""How an SAE is initialised, fed, optimised and evaluated."""

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
    """Share of the steps, the last ones, over which it falls linearly to 0."""
    clip_norm: float | None = None
    """Largest gradient norm over all parameters of one SAE; null: not clipped."""

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
    """Where an SAE starts from."""

    shared: bool = True
    """True (the study): equal seeds at equal size share a start. False: every run has its own."""
    b_dec: str = "zero"
    """Decoder bias at the start: zero, mean or geometric_median of the first batch."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "init.b_dec", self.b_dec, ("zero", "mean", "geometric_median"))
        return found


@dataclass(frozen=True)
class ActivationsConfig:
    """How activations reach the SAEs."""

    source: str = "stream"
    """stream: computed by the LM as they are needed. cache: computed once, then read from `paths.cache`. The
    weights are the same."""
    buffer_tokens: int = 262_144
    """Sequences are gathered up to about this many tokens and shuffled inside."""
    lm_batch: int = 64
    """Sequences in one LM forward pass."""
    dtype: str = "auto"
    """What activations are rounded to; auto: the LM's dtype."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "activations.source", self.source, ACTIVATION_SOURCES)
        one_of(found, "activations.dtype", self.dtype, LM_DTYPES)
        at_least(found, "activations.buffer_tokens", self.buffer_tokens, 1)
        at_least(found, "activations.lm_batch", self.lm_batch, 1)
        return found


KEPT_RESIDUALS_BYTES = 2**30
"""Held-out residuals of a layer that the evaluation keeps at most, so that the layers before it run once."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The final evaluation on held-out text."""

    tokens: int = 200_000
    """Held-out tokens, special ones included; fewer where the held-out text is shorter."""
    ultra_rare: float = 1e-5
    """Features that fire on a smaller share of tokens, but do fire, count as ultra-rare."""
    dense: float = 0.1
    """Features that fire on a larger share count as dense."""

    def problems(self) -> list[str]:
        found: list[str] = []
        at_least(found, "evaluation.tokens", self.tokens, 1)
        fraction(found, "evaluation.ultra_rare", self.ultra_rare)
        fraction(found, "evaluation.dense", self.dense)
        return found
