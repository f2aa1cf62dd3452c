"""The ground floor: every key of the configuration, its checks, and the names and ids derived from it.

No framework is imported here: the command line reads this module before anything heavy loads.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

NUMERICS_VERSION = 1
"""Raised whenever the same config would give other weights; part of every run id."""

TASKS = ("train", "match")
SITES = ("resid_pre",)
LM_DTYPES = ("auto", "float32", "bfloat16", "float16")
NUMERICS = ("modern", "study")


class SaeSweepError(Exception):
    """Anything a user can mend; the message says what was wrong, where, and what to do."""


class ConfigError(SaeSweepError):
    """A config that cannot run: all of its problems at once, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class MetricSink(Protocol):
    """Where the metrics of one run go: the local history, W&B, or both."""

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        """Log numbers at `tokens` SAE inputs."""

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        """Log a histogram: `counts` of length n, `edges` of length n + 1."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the final values of the run."""

    def image(self, name: str, path: Path) -> None:
        """Log a figure that is on disk."""

    def artifact(self, name: str, folder: Path) -> None:
        """Keep the files of `folder` as a versioned artifact (the trained SAE)."""

    def finish(self, *, failed: bool) -> None:
        """Close; nothing is logged afterwards."""


def _at_least(problems: list[str], key: str, value: float, least: float) -> None:
    if not value >= least:
        problems.append(f"{key}={value}: must be at least {least:g}")


def _one_of(problems: list[str], key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        problems.append(f"{key}={value}: not one of {', '.join(choices)}")


def _fraction(problems: list[str], key: str, value: float) -> None:
    if not 0 <= value <= 1:
        problems.append(f"{key}={value}: must lie between 0 and 1")


class KnownModel(NamedTuple):
    """What can be checked about a model before it loads."""

    name: str
    n_layers: int
    d_model: int


KNOWN_MODELS = {
    "gpt2": KnownModel("gpt2-small", 12, 768),
    "bundled:gpt2-pico": KnownModel("gpt2-pico", 12, 128),
    "HuggingFaceTB/SmolLM2-135M": KnownModel("smollm2-135m", 30, 576),
}


def _shape_of_folder(folder: Path) -> tuple[int, int] | None:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not a local model, or a damaged one: loading it says what is wrong
    n_layers = values.get("n_layer", values.get("num_hidden_layers"))
    d_model = values.get("n_embd", values.get("hidden_size"))
    return (n_layers, d_model) if n_layers and d_model else None


@dataclass(frozen=True)
class ModelConfig:
    """The language model whose residual stream is read."""

    path: str = "gpt2"
    """Hub id, local folder, `.gguf` file, or `bundled:gpt2-pico`."""
    name: str | None = None
    """Label in run names and tables; null: known for the models of `conf/model`, else the end of the path."""
    revision: str | None = None
    """Commit, tag or branch on the hub; pin it so that a run can be repeated."""
    dtype: str = "auto"
    """Arithmetic of the LM: auto (bfloat16 where the hardware is fast at it, else float32)."""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        return KNOWN_MODELS[self.path].name if self.path in KNOWN_MODELS else Path(self.path).stem

    @property
    def shape(self) -> tuple[int, int] | None:
        """(layers, d_model) as far as they can be told before the model loads, else None."""
        known = KNOWN_MODELS.get(self.path)
        return (known.n_layers, known.d_model) if known else _shape_of_folder(Path(self.path))

    def problems(self) -> list[str]:
        found: list[str] = []
        _one_of(found, "model.dtype", self.dtype, LM_DTYPES)
        return found


@dataclass(frozen=True)
class DatasetConfig:
    """Text to read; one subclass per kind of source."""

    name: str = "owt"
    """Label in run names and tables."""
    exhausted: str = "repeat"
    """What happens when the text runs out before `tokens`: repeat (and say so), stop, or error."""

    def problems(self) -> list[str]:
        found: list[str] = []
        _one_of(found, "dataset.exhausted", self.exhausted, ("repeat", "stop", "error"))
        return found


@dataclass(frozen=True)
class EmbeddedDataset(DatasetConfig):
    """A corpus that every installation has: documentation or source code of Python and libraries."""

    name: str = "stdlib_docs"


@dataclass(frozen=True)
class HubDataset(DatasetConfig):
    """Script-free Parquet on the Hugging Face hub, streamed."""

    path: str = ""
    """Repository id on the hub."""
    revision: str = ""
    """Commit or branch of the repository; pinned so that a run can be repeated."""
    files: str = ""
    """Glob of the Parquet files inside the repository at that revision."""
    text_key: str = "text"
    """Column that holds the text."""
    held_out_every: int = 50
    """Every n-th document is held out of training and used for evaluation."""

    def problems(self) -> list[str]:
        found = super().problems()
        for key in ("path", "revision", "files", "text_key"):
            if not getattr(self, key):
                found.append(f"dataset.{key} is empty: a hub dataset needs it")
        _at_least(found, "dataset.held_out_every", self.held_out_every, 2)
        return found


@dataclass(frozen=True)
class FilesDataset(DatasetConfig):
    """Local .txt (one document a file), .jsonl and .parquet (one document a row)."""

    name: str = "files"
    path: str = ""
    """A file, a folder (searched below), or a glob."""
    text_key: str = "text"
    """Key or column that holds the text in .jsonl and .parquet."""
    held_out_every: int = 20
    """Every n-th file (or row, where there are fewer files than this) is held out."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.path:
            found.append("dataset.path is empty: give a file, a folder or a glob of .txt, .jsonl or .parquet")
        _at_least(found, "dataset.held_out_every", self.held_out_every, 2)
        return found


@dataclass(frozen=True)
class PackingConfig:
    """How documents become sequences of equal length."""

    seq_len: int = 128
    """Tokens a sequence, special tokens included."""
    bos_every_sequence: bool = True
    """True: BOS opens every sequence. False (the study): BOS at document starts only."""
    separate_documents: bool = True
    """Put the end-of-text token between documents."""
    max_document_tokens: int | None = None
    """Cut documents at this many tokens (the study: 1,024); null: never."""
    mask_special: bool = True
    """Leave special-token positions out of training, evaluation and patching alike."""

    def problems(self) -> list[str]:
        found: list[str] = []
        _at_least(found, "packing.seq_len", self.seq_len, 4)
        if self.max_document_tokens is not None:
            _at_least(found, "packing.max_document_tokens", self.max_document_tokens, 1)
        return found


@dataclass(frozen=True)
class ArchitectureConfig:
    """What all architectures share; one subclass per architecture."""

    kind: ClassVar[str] = ""
    uses: ClassVar[tuple[str, ...]] = ()
    """Top-level keys (k, l0_coefficient, l1_coefficient) that mean something to it."""

    @property
    def sparsity_label(self) -> str:
        """The part of a run's name that says how sparse it is, for example `k16`."""
        raise NotImplementedError

    def problems(self, d_sae: int | None) -> list[str]:
        """What cannot work with a dictionary of `d_sae` features (None: not known yet)."""
        del d_sae
        return []


@dataclass(frozen=True)
class TopKConfig(ArchitectureConfig):
    """TopK (Gao et al. 2024, arXiv 2406.04093)."""

    kind: ClassVar[str] = "topk"
    uses: ClassVar[tuple[str, ...]] = ("k",)
    k: int = 16
    """Active features a token."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK, the loss that revives dead features."""

    @property
    def sparsity_label(self) -> str:
        return f"k{self.k}"

    def problems(self, d_sae: int | None) -> list[str]:
        found: list[str] = []
        _at_least(found, "k", self.k, 1)
        _at_least(found, "architecture.aux_coefficient", self.aux_coefficient, 0)
        if d_sae is not None and self.k > d_sae:
            found.append(f"k={self.k} is above d_sae={d_sae}: lower k or raise dictionary")
        return found


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK (Bussmann et al. 2024, arXiv 2412.06410)."""

    kind: ClassVar[str] = "batchtopk"
    threshold_momentum: float = 0.99
    """Of the running mean of the batch minimum that becomes the inference threshold."""

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        _fraction(found, "architecture.threshold_momentum", self.threshold_momentum)
        return found


@dataclass(frozen=True)
class JumpReLUConfig(ArchitectureConfig):
    """JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    kind: ClassVar[str] = "jumprelu"
    uses: ClassVar[tuple[str, ...]] = ("l0_coefficient",)
    l0_coefficient: float = 0.0018
    """Weight of L0 against the mean-over-d_in squared error of the normalised input."""
    bandwidth: float | None = None
    """Width of the straight-through kernel, in units of the normalised pre-activations; null: the preset's."""
    initial_threshold: float | None = None
    """Threshold every feature starts from, in the same units; null: the preset's."""
    warmup_fraction: float | None = None
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l0c{self.l0_coefficient:g}"

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        _at_least(found, "l0_coefficient", self.l0_coefficient, 0)
        _fraction(found, "architecture.warmup_fraction", self.warmup_fraction or 0)
        for key in ("bandwidth", "initial_threshold"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                found.append(f"architecture.{key}={getattr(self, key)}: must be above 0")
        return found


@dataclass(frozen=True)
class ReLUConfig(ArchitectureConfig):
    """ReLU with an L1 penalty (Bricken et al. 2023), unit-norm decoder rows."""

    kind: ClassVar[str] = "relu"
    uses: ClassVar[tuple[str, ...]] = ("l1_coefficient",)
    l1_coefficient: float = 0.02
    """Weight of L1 against the mean-over-d_in squared error of the normalised input."""
    warmup_fraction: float | None = None
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l1c{self.l1_coefficient:g}"

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        _at_least(found, "l1_coefficient", self.l1_coefficient, 0)
        _fraction(found, "architecture.warmup_fraction", self.warmup_fraction or 0)
        return found


ARCHITECTURES: dict[str, type[ArchitectureConfig]] = {
    cls.kind: cls for cls in (TopKConfig, BatchTopKConfig, JumpReLUConfig, ReLUConfig)
}


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
        _fraction(found, "optimizer.warmup_fraction", self.warmup_fraction)
        _fraction(found, "optimizer.decay_fraction", self.decay_fraction)
        if self.warmup_fraction + self.decay_fraction > 1:
            found.append("optimizer.warmup_fraction + optimizer.decay_fraction: above 1")
        return found


@dataclass(frozen=True)
class InitConfig:
    """Where an SAE starts from."""

    shared: bool = True
    """True (the study): equal seeds at equal size share their initial dictionary. False: every run its own."""
    b_dec: str = "zero"
    """Decoder bias at the start: zero, mean or geometric_median of the first batch."""

    def problems(self) -> list[str]:
        found: list[str] = []
        _one_of(found, "init.b_dec", self.b_dec, ("zero", "mean", "geometric_median"))
        return found


@dataclass(frozen=True)
class ActivationsConfig:
    """How activations reach the SAEs."""

    source: str = "stream"
    """stream: computed by the LM as they are needed."""
    buffer_tokens: int = 262_144
    """Sequences are gathered up to about this many tokens and shuffled inside."""
    lm_batch: int = 64
    """Sequences in one LM forward pass."""
    dtype: str = "auto"
    """What activations are rounded to; auto: the LM's dtype."""

    def problems(self) -> list[str]:
        found: list[str] = []
        _one_of(found, "activations.source", self.source, ("stream",))
        _one_of(found, "activations.dtype", self.dtype, LM_DTYPES)
        _at_least(found, "activations.buffer_tokens", self.buffer_tokens, 1)
        _at_least(found, "activations.lm_batch", self.lm_batch, 1)
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
        _at_least(found, "evaluation.tokens", self.tokens, 1)
        _fraction(found, "evaluation.ultra_rare", self.ultra_rare)
        _fraction(found, "evaluation.dense", self.dense)
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
        _fraction(found, "matching.threshold", self.threshold)
        _fraction(found, "matching.undertrained", self.undertrained)
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
        _one_of(found, "tracking.backend", self.backend, ("wandb", "none"))
        _at_least(found, "tracking.log_every", self.log_every, 1)
        return found


@dataclass(frozen=True)
class LauncherConfig:
    """How the runs of a sweep are carried out."""

    kind: str = "fused"
    """fused: runs that read the same text share each LM pass. solo: one run after the other."""
    checkpoint_every_min: float = 5.0
    """Minutes between two checkpoints."""

    def problems(self) -> list[str]:
        found: list[str] = []
        _one_of(found, "launcher.kind", self.kind, ("fused", "solo"))
        if not self.checkpoint_every_min > 0:
            found.append(f"launcher.checkpoint_every_min={self.checkpoint_every_min}: must be above 0")
        return found


@dataclass(frozen=True)
class PathsConfig:
    """Folders; relative ones start where the command was typed."""

    output: str = "multirun"
    """Results: one folder a sweep."""
    cache: str | None = None
    """Built corpora; null: the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, then `sae_sweep`)."""


@dataclass(frozen=True)
class Config:
    """One run, whole; the defaults are the study's baseline."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    dictionary: int = 16
    """Expansion factor: d_sae = dictionary x d_in."""
    k: int | None = 16
    """Active features a token (topk, batchtopk); null where the architecture has no use for it."""
    l0_coefficient: float | None = 0.0018
    """Sparsity weight (jumprelu); null where the architecture has no use for it."""
    l1_coefficient: float | None = 0.02
    """Sparsity weight (relu); null where the architecture has no use for it."""
    layer: int = 8
    """Layer whose residual stream is read, from 0."""
    site: str = "resid_pre"
    seed: int = 49
    """Of the SAE's initialisation."""
    data_seed: int = 0
    """Of the order of the documents."""
    shuffle_seed: int | None = None
    """Of the shuffle inside the buffer; null: data_seed."""
    tokens: int = 100_000_000
    """SAE inputs a run, after masking."""
    batch: int = 4096
    """SAE inputs a step."""
    numerics: str = "modern"
    """modern, or study: the study's trainer to the letter."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init: InitConfig = field(default_factory=InitConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    task: str = "train"
    """train: train and compare. match: compare the finished runs of `sweep` again."""
    sweep: str | None = None
    """Folder name of the sweep; null: the experiment's name, else a hash of the run ids."""
    experiment: str | None = None
    """Set by `experiment=NAME`."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Every contradiction of the config, in plain words."""
        found: list[str] = []
        _one_of(found, "task", self.task, TASKS)
        _one_of(found, "site", self.site, SITES)
        _one_of(found, "numerics", self.numerics, NUMERICS)
        _one_of(found, "device", self.device, ("auto", "cpu", "cuda", "mps"))
        for key in ("dictionary", "batch", "tokens"):
            _at_least(found, key, getattr(self, key), 1)
        for key in ("layer", "seed", "data_seed"):
            _at_least(found, key, getattr(self, key), 0)
        if 1 <= self.tokens < self.batch:
            found.append(f"tokens={self.tokens} is below batch={self.batch}: not even one step")
        shape = self.model.shape
        if shape is not None and self.layer >= shape[0]:
            found.append(f"layer={self.layer}: {self.model.label} has layers 0 to {shape[0] - 1}")
        if self.sweep is not None and Path(self.sweep).name != self.sweep:
            found.append(f"sweep={self.sweep}: must be a plain folder name")
        found += self.architecture.problems(self.dictionary * shape[1] if shape else None)
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.name != "architecture" and hasattr(value, "problems"):
                found += value.problems()
        return found

    @property
    def steps(self) -> int:
        """Optimiser steps: full batches that fit in `tokens`."""
        return self.tokens // self.batch

    @property
    def hook(self) -> str:
        """The hook's name in TransformerLens."""
        return f"blocks.{self.layer}.hook_{self.site}"

    def stream_identity(self) -> dict[str, Any]:
        """Everything that determines the sequence of tokens and activations, but for the layer."""
        return {
            "model": _identity(self.model),
            "dataset": _identity(self.dataset),
            "packing": _identity(self.packing),
            "activations": {"buffer_tokens": self.activations.buffer_tokens, "dtype": self.activations.dtype},
            "batch": self.batch,
            "data_seed": self.data_seed,
            "shuffle_seed": self.data_seed if self.shuffle_seed is None else self.shuffle_seed,
        }

    def identity(self) -> dict[str, Any]:
        """Everything in the config that determines the weights."""
        return {
            **self.stream_identity(),
            "architecture": {"kind": self.architecture.kind, **_identity(self.architecture)},
            "dictionary": self.dictionary,
            "layer": self.layer,
            "site": self.site,
            "seed": self.seed,
            "tokens": self.tokens,
            "numerics": self.numerics,
            "optimizer": _identity(self.optimizer),
            "init": _identity(self.init),
        }

    def run_id(self, fingerprints: Mapping[str, str]) -> str:
        """Hash of all that determines the weights: config, corpus and LM weights, numerics version."""
        whole = {"config": self.identity(), "numerics_version": NUMERICS_VERSION, **fingerprints}
        return digest(whole)

    def base_name(self) -> str:
        """The part of the run's name that every run has."""
        arch = self.architecture
        return (
            f"{self.model.label}_L{self.layer}_{self.dataset.name}_{arch.kind}"
            f"_x{self.dictionary}_{arch.sparsity_label}_s{self.seed}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain nested values, for YAML and JSON; the architecture and dataset carry their kind."""
        plain = dataclasses.asdict(self)
        plain["architecture"] = {"kind": self.architecture.kind, **plain["architecture"]}
        plain["dataset"] = {"kind": type(self.dataset).__name__, **plain["dataset"]}
        return plain


DATASETS: dict[str, type[DatasetConfig]] = {
    cls.__name__: cls for cls in (DatasetConfig, EmbeddedDataset, HubDataset, FilesDataset)
}


def config_from_dict(plain: Mapping[str, Any]) -> Config:
    """The inverse of `Config.as_dict`: how a frozen `config.yaml` is read back.

    Raises:
        ConfigError: naming every key that this version does not know.
    """
    values = dict(plain)
    architecture = dict(values.pop("architecture"))
    dataset = dict(values.pop("dataset"))
    parts = {
        "architecture": _build(ARCHITECTURES[architecture.pop("kind")], architecture),
        "dataset": _build(DATASETS[dataset.pop("kind")], dataset),
    }
    for part in dataclasses.fields(Config):
        if part.name in values and isinstance(values[part.name], Mapping):
            parts[part.name] = _build(part.default_factory, values.pop(part.name))  # type: ignore[arg-type]
    return _build(Config, {**values, **parts})


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ConfigError(f"{cls.__name__}: unknown key {key}" for key in sorted(unknown))
    return cls(**values)


def _identity(part: Any) -> dict[str, Any]:
    """A part of the config without what is only a label."""
    values = dataclasses.asdict(part)
    if isinstance(part, ModelConfig):
        values.pop("name")
    return values


def digest(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_IN_BASE_NAME = {
    *("architecture.kind", "architecture.k", "architecture.l0_coefficient", "architecture.l1_coefficient"),
    *("dictionary", "layer", "seed", "model.path", "dataset.name", "dataset.path"),
}
_LONGEST_NAME = 120


def run_name(config: Config, reference: Config) -> str:
    """`gpt2-small_L8_owt_topk_x16_k16_s49`, then every key that moves the weights and differs.

    Args:
        config: the run.
        reference: the defaults of the same model, dataset, architecture and numerics.
    """
    ours, usual = flatten(config.identity()), flatten(reference.identity())
    extras = [
        f"{key.split('.')[-1]}-{_short(value)}"
        for key, value in ours.items()
        if key not in _IN_BASE_NAME and usual.get(key) != value
    ]
    if config.numerics != "modern":
        extras.insert(0, config.numerics)
    name = "_".join([config.base_name(), *extras])
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 13].rstrip('_')}_{digest(extras)}"
    return name.replace("/", "-")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 1000:
        exponent = int(math.log10(value))
        mantissa = value / 10**exponent
        compact = f"{mantissa:g}e{exponent}"
        return compact if float(compact) == value and len(compact) < len(str(value)) else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
