"""How SAEs are trained, fed, evaluated, compared, tracked, launched and reported."""

from dataclasses import dataclass, field

from sae_sweep.config.checks import at_least, fraction, one_of
from sae_sweep.config.data import LM_DTYPES

ACTIVATION_SOURCES = ("stream", "cache")
STUDY_DATASETS = ("owt", "tinystories", "redpajama", "pile")


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


@dataclass(frozen=True)
class MatchingConfig:
    """How SAEs are compared."""

    threshold: float = 0.7
    """A feature is matched when its best decoder cosine is strictly above this."""
    undertrained: float = 0.1
    """A run whose match to its own initial dictionary is above this share is marked undertrained."""

    def problems(self) -> list[str]:
        found: list[str] = []
        fraction(found, "matching.threshold", self.threshold)
        fraction(found, "matching.undertrained", self.undertrained)
        return found


@dataclass(frozen=True)
class TrackingConfig:
    """What is sent to Weights & Biases; `history.jsonl` is written in any case."""

    backend: str = "wandb"
    """wandb or none."""
    project: str = "sae_sweep"
    entity: str | None = None
    log_every: int = 50
    """Steps between two logged points."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "tracking.backend", self.backend, ("wandb", "none"))
        at_least(found, "tracking.log_every", self.log_every, 1)
        return found


@dataclass(frozen=True)
class LauncherConfig:
    """How the runs of a sweep are carried out."""

    kind: str = "fused"
    """fused: runs that read the same text share each LM pass. solo: one run after the other."""
    checkpoint_every_min: float = 5.0
    """Minutes between two checkpoints."""
    max_group: int | None = None
    """Most runs that are trained together; null: as many as fit into the memory that is free."""

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "launcher.kind", self.kind, ("fused", "solo"))
        if self.max_group is not None:
            at_least(found, "launcher.max_group", self.max_group, 1)
        if not self.checkpoint_every_min > 0:
            found.append(f"launcher.checkpoint_every_min={self.checkpoint_every_min}: must be above 0")
        return found


@dataclass(frozen=True)
class PathsConfig:
    """Folders; relative ones start where the command was typed."""

    output: str = "multirun"
    """Results: one folder a sweep."""
    cache: str | None = None
    """Built corpora and cached activations; null: `sae_sweep` in the user's cache folder (`$XDG_CACHE_HOME`
    or `~/.cache`)."""


@dataclass(frozen=True)
class PlanConfig:
    """What `task=plan` reckons with."""

    tflops: float | None = None
    """Throughput in 10^12 floating-point operations a second; null: measured on this machine."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.tflops is not None and not self.tflops > 0:
            found.append(f"plan.tflops={self.tflops}: must be above 0")
        return found


@dataclass(frozen=True)
class StudyConfig:
    """How a sweep stands for the study that `task=report` sets it beside."""

    datasets: dict[str, str] = field(default_factory=dict)
    """The study's dataset (owt, tinystories, redpajama, pile) -> the one read in its place; others stay."""
    l0_scale: float = 1.0
    """What the study's JumpReLU coefficients are multiplied with in this sweep."""
    paper: str = "paper"
    """Sweep whose answers the report of a controlled sweep sets beside its own."""

    def problems(self) -> list[str]:
        found: list[str] = []
        unknown = set(self.datasets) - set(STUDY_DATASETS)
        if unknown:
            found.append(
                f"study.datasets: {', '.join(sorted(unknown))} is not one of {', '.join(STUDY_DATASETS)}"
            )
        if not self.l0_scale > 0:
            found.append(f"study.l0_scale={self.l0_scale}: must be above 0")
        return found
