"""Config of a run: everything that determines an SAE's weights and its evaluation, each value once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.config.architecture import ARCHITECTURES, ArchitectureConfig
from sae_sweep.config.checks import (
    INT32,
    INT64,
    PEBIBYTE,
    Limit,
    count,
    number,
    number_problems,
    one_of,
    random_seed,
)
from sae_sweep.config.data import (
    SYNTHETIC,
    DatasetConfig,
    ModelConfig,
    PackingConfig,
    SyntheticDataset,
)
from sae_sweep.config.errors import ConfigError
from sae_sweep.config.mixture import DATASETS, DomainDataset, MixDataset
from sae_sweep.config.plain import digest
from sae_sweep.config.training import (
    ActivationsConfig,
    EvaluationConfig,
    InitConfig,
    OptimizerConfig,
)
from sae_sweep.config.typed import build, typed

NUMERICS_VERSION = 3
"""Part of every run id; increased when the same config would give other weights."""

_COMMANDS_KEYS = {
    *("action", "experiment", "format", "launcher", "matching", "paths", "plan", "stream", "study", "sweep"),
    *("task", "tracking", "k", "l0_coefficient", "l1_coefficient"),
}
"""Keys that version 0.1.0 wrote into runs beside their own; none of them moves a weight."""

SITES = ("resid_pre",)
_TWO_TOKENS = Limit(2, "at least 2 (one token has no variance, which AuxK divides by)")
NUMERICS = ("modern", "study")
NORMALISATIONS = ("layer_norm", "none", "centred", "constant_norm_rescale", "expected_average_only_in")


@dataclass(frozen=True)
class RunConfig:
    """Config of a run; the defaults are the study's baseline."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    dictionary: int = count(16, most=INT32)
    """Expansion factor: d_sae = dictionary x d_in."""
    layer: int = number(8, least=0, most=INT32)
    """Layer whose residual stream is read, from 0."""
    site: str = "resid_pre"
    seed: int = random_seed(49)
    """Seed for SAE initialisation."""
    data_seed: int = random_seed(0)
    """Seed for the order of the documents."""
    shuffle_seed: int | None = random_seed(None)
    """Seed for the shuffle inside each buffer; null: data_seed."""
    tokens: int = count(100_000_000, most=INT64)
    """SAE inputs per run, after masking."""
    batch: int = number(4096, least=_TWO_TOKENS, most=INT32)
    """SAE inputs per step."""
    numerics: str = "modern"
    """Preset of the trainer: modern, or study (exactly the study's trainer)."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    backend: str = "auto"
    """Kernels of the training step: reference (dense formulas), cpu or triton (fast), or auto: fast
    kernels for the device, else the reference. They differ in rounding."""
    normalisation: str = "auto"
    """How inputs are normalised: layer_norm (each token minus its mean, over its std), none, centred (minus
    its mean), constant_norm_rescale (at norm sqrt(d_in)), expected_average_only_in (all times one factor, so
    that their mean norm is that), or auto: as the SAE of `init.sae` does, else layer_norm."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init: InitConfig = field(default_factory=InitConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """All problems of the run's keys, one line each."""
        wrong = number_problems(self)
        found = list(wrong.values())
        one_of(found, "site", self.site, SITES)
        one_of(found, "numerics", self.numerics, NUMERICS)
        one_of(found, "normalisation", self.normalisation, ("auto", *NORMALISATIONS))
        one_of(found, "device", self.device, ("auto", "cpu", "cuda", "mps"))
        one_of(found, "backend", self.backend, ("auto", "reference", "cpu", "triton"))
        if not wrong.keys() & {"tokens", "batch"} and self.tokens < self.batch:
            found.append(f"tokens={self.tokens} is below batch={self.batch}: not even one step")
        shape = self.model.shape
        if shape is not None and "layer" not in wrong and self.layer >= shape[0]:
            there = f"layers 0 to {shape[0] - 1}" if shape[0] > 1 else "layer 0 alone"
            found.append(f"layer={self.layer}: {self.model.label} has {there}")
        synthetic = isinstance(self.dataset, SyntheticDataset)
        if synthetic != (self.model.path == SYNTHETIC):
            needed, given = ("model", "dataset") if synthetic else ("dataset", "model")
            found.append(f"{given}=synthetic is of use with {needed}=synthetic only")
        context = self.model.context
        if context is not None and not number_problems(self.packing) and self.packing.seq_len > context:
            found.append(
                f"packing.seq_len={self.packing.seq_len}: {self.model.label} reads at most {context} tokens"
            )
        if shape is None or "dictionary" in wrong:
            found += self.architecture.problems(None)
        else:
            found += self.size_problems(shape[1])
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.name != "architecture" and hasattr(value, "problems"):
                found += value.problems()
        return found

    def size_problems(self, d_in: int) -> list[str]:
        """Problems that only the width of the residual stream shows, and those of the architecture."""
        d_sae = self.dictionary * d_in
        found = self.architecture.problems(d_sae)
        size = f"dictionary={self.dictionary}: d_sae={d_sae}"
        if d_sae > INT32.value:
            found.append(f"{size} must be {INT32.words}")
        elif 4 * d_sae * d_in > PEBIBYTE:
            found.append(f"{size} x d_in={d_in} float32 weights are over 2^50 bytes: lower it")
        elif "batch" not in number_problems(self) and 4 * d_sae * self.batch > PEBIBYTE:
            found.append(f"batch={self.batch} x d_sae={d_sae} float32 latents are over 2^50 bytes: lower it")
        return found

    @property
    def resolved_normalisation(self) -> str:
        """How a run that is planned normalises: `auto` is layer_norm, unless the plan has replaced it."""
        return "layer_norm" if self.normalisation == "auto" else self.normalisation

    @property
    def steps(self) -> int:
        """Optimiser steps: full batches that fit in `tokens`."""
        return self.tokens // self.batch

    def parameters(self, d_in: int) -> int:
        """Number of parameters of the SAE; two biases per feature, which not all architectures have."""
        d_sae = self.dictionary * d_in
        return 2 * d_in * d_sae + 2 * d_sae + d_in

    @property
    def buffered(self) -> int:
        """Approximate number of tokens that are buffered and shuffled together: at most the whole budget."""
        return min(self.activations.buffer_tokens, self.steps * self.batch)

    @property
    def fits_buffer(self) -> bool:
        """Whether the budget is below a buffer: then the buffer is as small, and a stream of its own."""
        return self.buffered < self.activations.buffer_tokens

    @property
    def hook(self) -> str:
        """TransformerLens name of the hook."""
        return f"blocks.{self.layer}.hook_{self.site}"

    def stream_identity(self) -> dict[str, Any]:
        """Everything that determines tokens and activations, except the layer and the content of text and LM.

        Fingerprints stand for that content: the path and the label of a text or a model have no effect.
        """
        return {
            "model": {"dtype": self.model.dtype},
            "dataset": self.dataset.identity(),
            "packing": dataclasses.asdict(self.packing),
            "activations": {
                "buffered_inputs" if self.fits_buffer else "buffer_tokens": self.buffered,
                "dtype": self.activations.dtype,
            },
            "batch": self.batch,
            "data_seed": self.data_seed,
            "shuffle_seed": self.data_seed if self.shuffle_seed is None else self.shuffle_seed,
        }

    def pass_identity(self) -> dict[str, Any]:
        """What runs must agree in to share the passes of an LM, besides the content of text and LM."""
        how = {"device": self.device, "lm_batch": self.activations.lm_batch}
        return {"stream": self.stream_identity(), **how}

    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights, except the content of text and LM."""
        return {
            **self.stream_identity(),
            "architecture": {"kind": self.architecture.kind, **dataclasses.asdict(self.architecture)},
            "dictionary": self.dictionary,
            "layer": self.layer,
            "site": self.site,
            "seed": self.seed if self.init.sae is None else None,  # it draws the initial dictionary alone
            "tokens": self.tokens,
            "numerics": self.numerics,
            "backend": self.backend,
            "optimizer": self.optimizer.identity(),
            "init": self.init.identity(),
            **self._normalisation_identity(),
        }

    def _normalisation_identity(self) -> dict[str, str]:
        """The normalisation, except the usual one: ids of runs from before the key stay as they were."""
        found = self.resolved_normalisation
        return {} if found == "layer_norm" else {"normalisation": found}

    def weight_keys(self) -> dict[str, Any]:
        """The keys of `identity`, with text and model as the command names them; for names and tables."""
        return {
            **self.identity(),
            "model": {key: value for key, value in dataclasses.asdict(self.model).items() if key != "name"},
            "dataset": dataclasses.asdict(self.dataset),
            "optimizer": dataclasses.asdict(self.optimizer),
            "init": dataclasses.asdict(self.init),
            "normalisation": self.resolved_normalisation,
            "activations": {"buffer_tokens": self.activations.buffer_tokens, "dtype": self.activations.dtype},
        }

    def run_id(self, fingerprints: Mapping[str, str]) -> str:
        """Hash of everything that determines the weights: config, corpus, LM weights, numerics version."""
        whole = {"config": self.identity(), "numerics_version": NUMERICS_VERSION, **fingerprints}
        return digest(whole)

    def base_name(self) -> str:
        """The first part of a run's name, such as `gpt2-small_L8_owt_topk_x16_k16_s49`."""
        arch = self.architecture
        return (
            f"{self.model.label}_L{self.layer}_{self.dataset.name}_{arch.kind}"
            f"_x{self.dictionary}_{arch.sparsity_label}_s{self.seed}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Nested dicts for YAML and JSON; architecture and dataset include their kind."""
        plain = dataclasses.asdict(self)
        plain["architecture"] = {"kind": self.architecture.kind, **plain["architecture"]}
        plain["dataset"] = self.dataset.as_dict()
        return plain


def run_from_dict(plain: Mapping[str, Any]) -> RunConfig:
    """Inverse of `RunConfig.as_dict`, for `config.yaml` and the runs in `plan.json`.

    Raises:
        ConfigError: naming values of another type and unknown keys, as from another version.
    """
    values = {key: value for key, value in plain.items() if key not in _COMMANDS_KEYS}
    parts = {
        "architecture": _part(values.get("architecture"), "architecture", ARCHITECTURES),
        "dataset": _part(values.get("dataset"), "dataset", DATASETS),
    }
    return build(RunConfig, {**values, **parts})


def _part(value: Any, key: str, classes: Mapping[str, type]) -> Any:
    """The part of a run that is an object of one of several classes, by its `kind`."""
    part = typed(value, dict[str, Any], key)
    kind = typed(part.pop("kind", None), str, f"{key}.kind")
    if kind not in classes:
        raise ConfigError([f"{key}.kind={kind}: not one of {', '.join(classes)}"])
    if classes[kind] is MixDataset:
        mixed = typed(part.get("parts"), dict[str, Any], f"{key}.parts")
        part["parts"] = {name: _part(one, f"{key}.parts.{name}", classes) for name, one in mixed.items()}
    if classes[kind] is DomainDataset:
        part["source"] = _part(part.get("source"), f"{key}.source", classes)
    return build(classes[kind], part, key)
