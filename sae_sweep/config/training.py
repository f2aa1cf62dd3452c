"""Configs of initialisation, activations, optimiser and evaluation."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweep.config.checks import (
    INT32,
    PEBIBYTE,
    Limit,
    below_1,
    count,
    fraction,
    number_problems,
    one_of,
    positive,
)
from sae_sweep.config.data import LM_DTYPES
from sae_sweep.config.folders import known_home

ACTIVATION_SOURCES = ("stream", "cache")
_IN_MEMORY = Limit(PEBIBYTE // 4, f"at most {PEBIBYTE // 4} (in memory: 2^50 bytes)")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its learning-rate schedule, and how the errors of a batch become one loss."""

    lr: float = positive(3e-4)
    """Peak learning rate."""
    beta1: float = below_1(0.9)
    beta2: float = below_1(0.99)
    eps: float = positive(1e-8)
    warmup_fraction: float = fraction(0.02)
    """Share of the steps over which the rate rises linearly from 0."""
    decay_fraction: float = fraction(0.2)
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    clip_norm: float | None = positive(None)
    """Maximum gradient norm over all parameters of one SAE; null: not clipped."""
    tilt: float | None = positive(None)
    """Tilt of the mean over the tokens' squared errors (TERM, Li et al. 2021; Muhamed et al. 2024 take 500).
    The larger, the more the worst tokens count, up to the maximum alone. null: their mean."""

    def identity(self) -> dict[str, Any]:
        """The keys that are set, so that a new one leaves the ids of runs without it as they were."""
        known = dataclasses.asdict(self)
        return {key: value for key, value in known.items() if key != "tilt" or value is not None}

    def problems(self) -> list[str]:
        wrong = number_problems(self, "optimizer.")
        found = list(wrong.values())
        comparable = not wrong.keys() & {"warmup_fraction", "decay_fraction"}
        if comparable and self.warmup_fraction + self.decay_fraction > 1:
            found.append("optimizer.warmup_fraction + optimizer.decay_fraction: above 1")
        return found


@dataclass(frozen=True)
class InitConfig:
    """Initialisation of an SAE."""

    shared: bool = True
    """True (the study): equal seeds at equal size share a dictionary at the start. False: none do."""
    b_dec: str = "zero"
    """Initial decoder bias: zero, or the mean or geometric_median of the first batch."""
    sae: str | None = None
    """SAE to start from, for fine-tuning: a folder, a run's or another library's, or `hf:` and a name on the
    Hugging Face hub. null: a dictionary that is drawn."""

    @property
    def label(self) -> str:
        """Name of the SAE of `sae` in tables and notes, that of its run's folder; empty without one."""
        place = Path(self.sae or "")
        return place.parent.name if place.name == "sae" else place.name

    def identity(self) -> dict[str, Any]:
        """The keys that determine the start, beside the content of `sae`, which has its own fingerprint."""
        drawn = {"shared": self.shared} if self.sae is None else {}
        return {**drawn, "b_dec": self.b_dec}

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "init.b_dec", self.b_dec, ("zero", "mean", "geometric_median"))
        known_home(found, "init.sae", self.sae)
        if self.sae is not None and self.b_dec != "zero":
            found.append(f"init.b_dec={self.b_dec}: the SAE of init.sae has a decoder bias of its own")
        if self.sae is not None and not self.sae.strip():
            found.append(f"init.sae={self.sae}: name a folder, or hf: and a name on the Hugging Face hub")
        return found


@dataclass(frozen=True)
class ActivationsConfig:
    """Source and buffering of the activations."""

    source: str = "stream"
    """stream: computed by the LM on demand. cache: computed once, then read from `paths.cache`. The weights
    are the same."""
    buffer_tokens: int = count(262_144, most=_IN_MEMORY)
    """Approximate number of tokens in the buffer, inside which activations are shuffled; at most the run's
    `tokens`."""
    lm_batch: int = count(64, most=INT32)
    """Sequences per LM forward pass."""
    dtype: str = "auto"
    """Dtype that activations are rounded to; auto: the LM's."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "activations.").values())
        one_of(found, "activations.source", self.source, ACTIVATION_SOURCES)
        one_of(found, "activations.dtype", self.dtype, LM_DTYPES)
        return found


KEPT_RESIDUALS_BYTES = 2**30
"""Limit up to which the evaluation keeps a layer's held-out residuals, so that earlier layers run once."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The final evaluation on held-out text."""

    tokens: int = count(200_000, most=_IN_MEMORY)
    """Held-out tokens, special ones included; fewer where the held-out text is shorter."""
    ultra_rare: float = fraction(1e-5)
    """Features that fire, but on a smaller share of tokens than this, count as ultra-rare."""
    dense: float = fraction(0.1)
    """Features that fire on a larger share of tokens than this count as dense."""

    def problems(self) -> list[str]:
        return list(number_problems(self, "evaluation.").values())
