"""Config of a command: its task, launcher and tracking. No key of it affects weights."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.config.analysis import FIGURES, AnalysisConfig
from sae_sweep.config.checks import (
    INT32,
    Limit,
    count,
    number,
    number_problems,
    one_of,
    positive,
)
from sae_sweep.config.errors import ConfigError
from sae_sweep.config.folders import known_home
from sae_sweep.config.matching import MatchingConfig
from sae_sweep.config.names import plain_name
from sae_sweep.config.tracking import TrackingConfig

EXPORTS = ("neuronpedia", "delphi")
"""Forms of task=export."""
CACHE_ACTIONS = ("fill", "list", "verify", "prune", "remove")
_SLURM_16_BIT = Limit(65_533, "at most 65533 (SLURM's 16 bits)")
_DAY_S = Limit(86_400, "at most 86400 (a day)")
_YEAR_S = Limit(31_536_000, "at most 31536000 (a year)")
_FASTEST_TFLOPS = Limit(10**9, "at most 1000000000 (a thousand exascale machines)")
_THREADS = Limit(1024, "at most 1024 (the cores of one machine)")
_PROCESSES = Limit(2**22, f"at most {2**22} (the processes of one machine)")


@dataclass(frozen=True)
class SlurmConfig:
    """Resources and options of the SLURM jobs; each group of runs is one job."""

    partition: str | None = None
    """`sinfo` lists them; null: the cluster's default."""
    account: str | None = None
    qos: str | None = None
    """Quality of service."""
    time_min: int = count(1440, most=INT32)
    """Minutes until a job is requeued and continues from its checkpoint."""
    gpus: int = number(1, least=0, most=_SLURM_16_BIT)
    """GPUs per job; a group trains on one. 0: on CPUs."""
    cpus: int = count(4, most=_SLURM_16_BIT)
    """CPU cores per job."""
    mem_gb: float | None = number(None, least=0.001, most=2**20)
    """Memory per job in GB; null: the cluster's default."""
    array_parallelism: int = count(256, most=INT32)
    """Jobs of a sweep that may run at once."""
    setup: list[str] = field(default_factory=list)
    """Shell lines at the start of a job: `["module load cuda", "export HF_HUB_OFFLINE=1"]`."""
    signal_delay_s: int = count(120, most=_SLURM_16_BIT)
    """Seconds before the time limit at which a job is told to save and be requeued."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, such as `{constraint: a100, exclude: node7}`."""
    poll_s: float = number(10.0, least=0.01, most=_DAY_S)
    """Seconds between two polls of the jobs while the command waits for them."""
    lost_after_s: float = number(60.0, least=0, most=_YEAR_S)
    """Seconds after which a job that ended without a result counts as lost; shared disks may lag behind."""

    def problems(self) -> list[str]:
        wrong = number_problems(self, "launcher.slurm.")
        found = list(wrong.values())
        comparable = not wrong.keys() & {"time_min", "signal_delay_s"}
        # SLURM may send the signal up to a minute early, and it kills a job that has not yet set a handler
        if comparable and 60 * self.time_min <= self.signal_delay_s + 60:
            found.append(
                f"launcher.slurm.time_min={self.time_min}: must be over a minute longer than "
                f"launcher.slurm.signal_delay_s={self.signal_delay_s}, or jobs are told to stop as they start"
            )
        return found


@dataclass(frozen=True)
class LauncherConfig:
    """Launcher settings: where groups of runs are trained, and how they are saved."""

    kind: str = "inprocess"
    """inprocess: groups in turn, in this process. local: in worker processes. slurm: one job per group."""
    checkpoint_every_min: float = positive(5.0)
    """Minutes between two checkpoints."""
    max_group: int | None = count(None, most=INT32)
    """Maximum number of runs trained together; null: as many as fit into the free memory."""
    workers: int | None = count(None, most=_PROCESSES)
    """Worker processes at once (local); null: one per GPU, or two on a machine without GPUs."""
    threads: int | None = count(None, most=_THREADS)
    """CPU threads per process; null: the machine's cores, divided between workers (local). A run that is
    resumed takes the number that it began with."""
    allow_mixed: bool = False
    """True: resume runs that began on another kind of device, or with other attention or kernels, and record
    them as mixed. False: refuse. A preempted job always goes on."""
    detach: bool = False
    """True: return when the jobs are submitted (slurm), without waiting for them."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def problems(self) -> list[str]:
        found = list(number_problems(self, "launcher.").values())
        one_of(found, "launcher.kind", self.kind, ("inprocess", "local", "slurm"))
        if self.detach and self.kind != "slurm":
            found.append(f"launcher.detach=true needs launcher=slurm, not {self.kind}")
        found += self.slurm.problems()
        return found


@dataclass(frozen=True)
class PathsConfig:
    """Folders; relative paths start at the working directory."""

    output: str = "multirun"
    """Results: one folder per sweep."""
    cache: str | None = None
    """Built corpora and cached activations; null: `sae_sweep` in the user's cache folder (`$XDG_CACHE_HOME`
    or `~/.cache`)."""

    def problems(self) -> list[str]:
        found: list[str] = []
        known_home(found, "paths.output", self.output)
        known_home(found, "paths.cache", self.cache)
        return found


@dataclass(frozen=True)
class PlanConfig:
    """Settings of `task=plan`."""

    tflops: float | None = number(None, least=1e-6, most=_FASTEST_TFLOPS)
    """Throughput for the estimate of hours, in 10^12 floating-point operations per second; null: measured."""

    def problems(self) -> list[str]:
        return list(number_problems(self, "plan.").values())


@dataclass(frozen=True)
class CommandConfig:
    """Keys of a command, which are common to all of its runs and not part of a run's config."""

    task: str = "train"
    """Task to run; `--help` lists them."""
    format: str = "text"
    """Output format of plan, status and generate: text, or json (with nothing else on standard output). Form
    of task=export: neuronpedia, or delphi."""
    action: str = "fill"
    """Action of task=cache. fill: cache what the runs will read, without training. list: show cached streams.
    verify: check their checksums. prune: remove damaged, unfinished and outdated files. remove: delete
    `stream`."""
    stream: str | None = None
    """Cached stream that task=cache verifies, prunes or removes, as listed; null: all."""
    sae: str | None = None
    """SAE that task=analyse, diff and export read in place of a sweep's: a run's folder, a folder of SAELens,
    sparsify, dictionary_learning or the study, or on the hub `hf:USER/REPO/FOLDER` or `RELEASE/NAME`.
    task=publish takes a run's folder."""
    to: str | None = None
    """Repository of task=publish on the Hugging Face Hub: `hf:USER/REPO`, or `hf:USER/REPO/FOLDER`."""
    a: str | None = None
    """First SAE of task=match in place of a sweep's; named as `sae` is."""
    b: str | None = None
    """Second SAE of task=match, which is compared with `a`."""
    figures: str = "own"
    """Figures of task=analyse. own: those of what it measured. paper: all that the study shows, with the
    positional embeddings zeroed and shuffled where the model learned some. none: tables only."""
    sweep: str | None = None
    """Folder name of the sweep; null: the experiment's name, else a hash of the run ids."""
    experiment: str | None = None
    """Name of the experiment, set by `experiment=NAME`."""
    fuse: bool = True
    """true: runs that read the same text share LM passes. false: one run at a time, with equal weights."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """All problems of the command's keys, one line each."""
        found: list[str] = []
        one_of(found, "action", self.action, CACHE_ACTIONS)
        if self.task == "cache" and self.action == "remove" and self.stream is None:
            found.append("action=remove needs stream=NAME: task=cache action=list shows the names")
        one_of(found, "format", self.format, EXPORTS if self.task == "export" else ("text", "json"))
        one_of(found, "figures", self.figures, FIGURES)
        for key in ("sae", "a", "b"):
            named = getattr(self, key)
            known_home(found, key, named)
            if named is not None and not named.strip():
                found.append(f"{key}: name a folder, or RELEASE/NAME on the hub; without one, leave it out")
        if (self.a is None) != (self.b is None):
            missing, given = ("a", "b") if self.a is None else ("b", "a")
            found.append(f"{given}={getattr(self, given)} is compared with another SAE: give {missing} too")
        if self.task == "publish" and self.to is None:
            found.append("task=publish needs a repository on the Hugging Face Hub: to=hf:USER/REPO")
        for key in ("sweep", "experiment", "stream"):
            plain_name(found, key, getattr(self, key))
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if hasattr(value, "problems"):
                found += value.problems()
        return found

    def changes(self, dataset: str) -> dict[str, Any]:
        """Keys that the command changes in runs on `dataset`; subclasses of tasks may return some."""
        del dataset
        return {}

    def kept(self) -> dict[str, Any]:
        """Values for `plan.json` that later tasks on the sweep need."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Nested dicts of the keys, for JSON."""
        return dataclasses.asdict(self)
