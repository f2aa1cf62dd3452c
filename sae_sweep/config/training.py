"""How SAEs are trained, fed, evaluated, compared, tracked, launched and reported."""

from dataclasses import dataclass, field
from typing import Any

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
class SlurmConfig:
    """What SLURM is asked for; each group of runs is one job of its own."""

    partition: str | None = None
    """null: the cluster's default."""
    account: str | None = None
    qos: str | None = None
    """Quality of service."""
    time_min: int = 1440
    """Minutes a job may run before it is requeued and goes on where it was."""
    gpus: int = 1
    """GPUs a job; a group trains on one."""
    cpus: int = 4
    """CPU cores a job."""
    mem_gb: float | None = None
    """Memory a job, in GB; null: the cluster's default."""
    array_parallelism: int = 256
    """Jobs of a sweep that may run at once."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that a job begins with, such as `module load cuda`."""
    signal_delay_s: int = 120
    """Seconds before the end of its time at which a job is told to save and be requeued."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, such as `{constraint: a100, exclude: node7}`."""
    poll_s: float = 10.0
    """Seconds between two looks at the jobs while the command waits for them."""
    lost_after_s: float = 60.0
    """A job that ended this many seconds ago without a result is lost: shared disks take time to agree."""

    def problems(self) -> list[str]:
        found: list[str] = []
        for key, least in (("gpus", 0), ("cpus", 1), ("array_parallelism", 1), ("signal_delay_s", 1)):
            at_least(found, f"launcher.slurm.{key}", getattr(self, key), least)
        if self.mem_gb is not None and not self.mem_gb > 0:
            found.append(f"launcher.slurm.mem_gb={self.mem_gb}: must be above 0")
        if not self.poll_s > 0:
            found.append(f"launcher.slurm.poll_s={self.poll_s}: must be above 0")
        if not self.lost_after_s >= 0:
            found.append(f"launcher.slurm.lost_after_s={self.lost_after_s}: must be 0 or more")
        # SLURM may send the signal up to a minute early; a job that does not listen yet would die of it
        if 60 * self.time_min <= self.signal_delay_s + 60:
            found.append(
                f"launcher.slurm.time_min={self.time_min}: must be over a minute longer than "
                f"launcher.slurm.signal_delay_s={self.signal_delay_s}, or jobs are told to stop as they start"
            )
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
    cluster: str = "inprocess"
    """inprocess: one group of runs after the other. local: in worker processes. slurm: a job a group."""
    workers: int | None = None
    """Worker processes at once (cluster local); null: one a GPU, or two where there is none."""
    detach: bool = False
    """True: return when the jobs are submitted (cluster slurm), without waiting for them."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def problems(self) -> list[str]:
        found: list[str] = []
        one_of(found, "launcher.kind", self.kind, ("fused", "solo"))
        if self.max_group is not None:
            at_least(found, "launcher.max_group", self.max_group, 1)
        one_of(found, "launcher.cluster", self.cluster, ("inprocess", "local", "slurm"))
        if self.workers is not None:
            at_least(found, "launcher.workers", self.workers, 1)
        if self.detach and self.cluster != "slurm":
            found.append(f"launcher.detach=true needs launcher.cluster=slurm, not {self.cluster}")
        found += self.slurm.problems()
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
