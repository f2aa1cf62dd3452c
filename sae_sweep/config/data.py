"""Configs of the language model and of the text that it reads."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config.checks import (
    INT32,
    INT64,
    Limit,
    count,
    fraction,
    number,
    number_problems,
    one_of,
    positive,
    random_seed,
)
from sae_sweep.config.folders import expanded, known_home
from sae_sweep.config.names import made_plain, plain_name, without_suffix
from sae_sweep.config.shape import ModelShape, read_shape, shape_problem

LM_DTYPES = ("auto", "float32", "bfloat16", "float16")
_SYNTHETIC_FEATURES = Limit(2**20, "at most 1048576 (features of a synthetic dictionary)")
SYNTHETIC = "bundled:synthetic"
"""`model.path` of what stands for a language model where a synthetic dataset describes the activations."""
SYNTHETIC_WIDTH = 64
"""Width of synthetic activations."""
_RAREST_HELD_OUT = Limit(1_000_000, "at most 1000000 (rarer ones are missing in most texts)")


class KnownModel(NamedTuple):
    """Properties of a model that are known before it loads."""

    name: str
    n_layers: int
    d_model: int
    block_parameters: int
    """Weights in the matrices of one block."""
    context: int
    """Longest sequence in tokens."""
    vocabulary: int
    """Number of token ids that its embedding knows."""
    revision: str | None
    """Commit on the hub that is read unless `model.revision` names another; None if it is not there."""


KNOWN_MODELS = {
    "gpt2": KnownModel(
        *("gpt2-small", 12, 768, 12 * 768**2, 1024, 50_257),
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
    ),
    "bundled:gpt2-pico": KnownModel("gpt2-pico", 12, 128, 12 * 128**2, 256, 4096, revision=None),
    SYNTHETIC: KnownModel("synthetic", 1, SYNTHETIC_WIDTH, 0, 2**20, 1024, revision=None),
    "HuggingFaceTB/SmolLM2-135M": KnownModel(
        *("smollm2-135m", 30, 576),
        # 9 heads of 64 share 3 keys and values; a gated MLP of 1,536
        block_parameters=2 * 576 * 64 * (9 + 3) + 3 * 576 * 1536,
        context=8192,
        vocabulary=49_152,
        revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """The language model whose residual stream is read."""

    path: str = "gpt2"
    """Hub id, local folder, `.gguf` file, or `bundled:gpt2-pico`."""
    name: str | None = None
    """Label in run names and tables; null: that of the model in `conf/model`, else the end of the path."""
    revision: str | None = None
    """Commit, tag or branch on the hub; pin it so that a run can be repeated. null: the commit that a model
    in `conf/model` is pinned to, else `main`."""
    dtype: str = "auto"
    """Dtype of the LM; auto: bfloat16 where the training machine is fast at it (on SLURM: in jobs with GPUs),
    else float32; always float32 with numerics=study."""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        if self.path in KNOWN_MODELS:
            return KNOWN_MODELS[self.path].name
        return made_plain(without_suffix(Path(self.path).name)) or "model"

    @property
    def hub_revision(self) -> str:
        """Commit, tag or branch of a model on the hub."""
        known = KNOWN_MODELS.get(self.path)
        return self.revision or (known and known.revision) or "main"

    @property
    def shape(self) -> tuple[int, int] | None:
        """(layers, d_model), or None if unknown until the model loads."""
        known = self._known
        return (known.n_layers, known.d_model) if known else None

    @property
    def block_parameters(self) -> int | None:
        """Weights in the matrices of one block, or None if unknown until the model loads."""
        return self._known.block_parameters if self._known else None

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, or None if unknown until the model loads."""
        return self._known.context if self._known else None

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids that its embedding knows, or None if unknown until the model loads."""
        return self._known.vocabulary if self._known else None

    @property
    def _known(self) -> KnownModel | ModelShape | None:
        return KNOWN_MODELS.get(self.path) or read_shape(expanded(self.path))

    def problems(self) -> list[str]:
        found: list[str] = []
        plain_name(found, "model.name", self.name)
        one_of(found, "model.dtype", self.dtype, LM_DTYPES)
        known_home(found, "model.path", self.path)
        if problem := shape_problem(expanded(self.path)):
            found.append(f"model.path={self.path}: {problem}")
        return found


_LOCATION = ("name", "path", "revision", "files")
"""Keys that say where a text is and what it is called; its fingerprint says what it is."""


@dataclass(frozen=True)
class DatasetConfig:
    """Text to read; one subclass per kind of source."""

    name: str = "owt"
    """Label in run names and tables."""
    exhausted: str = "repeat"
    """Behaviour when the text ends before `tokens`: repeat (with a log line), stop, or error."""

    @property
    def on_hub(self) -> bool:
        """Whether reading it needs the network."""
        return False

    def identity(self) -> dict[str, Any]:
        """The keys that determine which documents are read, beside the content that its fingerprint names."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _LOCATION}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, with the kind of dataset."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}

    def problems(self) -> list[str]:
        found = list(number_problems(self, "dataset.").values())
        plain_name(found, "dataset.name", self.name)
        one_of(found, "dataset.exhausted", self.exhausted, ("repeat", "stop", "error"))
        return found


@dataclass(frozen=True)
class EmbeddedDataset(DatasetConfig):
    """A corpus from the installation itself: documentation or source code of Python and libraries."""

    name: str = "stdlib_docs"


@dataclass(frozen=True)
class HubDataset(DatasetConfig):
    """Parquet or lines of JSON on the Hugging Face hub, streamed without running scripts."""

    path: str = ""
    """Repository id on the hub."""
    revision: str = ""
    """Commit or branch of the repository; pinned so that a run can be repeated."""
    files: str = ""
    """Glob of the files inside the repository at that revision: .parquet, .jsonl, .jsonl.gz or .jsonl.zst."""
    text_key: str = "text"
    """Column, or key of each line, that holds the text."""
    held_out_every: int = number(50, least=2, most=_RAREST_HELD_OUT)
    """One document in so many, chosen by its text, is held out of training and used for evaluation."""

    @property
    def on_hub(self) -> bool:
        return True

    def problems(self) -> list[str]:
        found = super().problems()
        for key in ("path", "revision", "files", "text_key"):
            if not getattr(self, key):
                found.append(f"dataset.{key} is empty: a hub dataset needs it")
        return found


@dataclass(frozen=True)
class FilesDataset(DatasetConfig):
    """Local files: .txt (one document per file), .jsonl and .parquet (one document per row).

    .txt and .jsonl may be compressed (.gz, .zst); a compressed file is read in its own order.
    """

    name: str = "files"
    path: str = ""
    """A file, a folder (searched below, also through links), or a glob; hidden files are left out."""
    text_key: str = "text"
    """Key or column that holds the text in .jsonl and .parquet."""
    held_out_every: int = number(20, least=2, most=_RAREST_HELD_OUT)
    """One document in so many, chosen by its text, is held out of training and used for evaluation."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.path:
            found.append("dataset.path is empty: give a file, a folder or a glob of .txt, .jsonl or .parquet")
        known_home(found, "dataset.path", self.path)
        return found


@dataclass(frozen=True)
class FaithfulDataset(DatasetConfig):
    """Text that a language model samples itself, from BOS alone, so that no other dataset is involved.

    Temperature 1, top-p 1, in float32, until the end-of-text token or the longest document. It is sampled
    once per cache; task=generate does it ahead.
    """

    name: str = "faithful"
    path: str = ""
    """Model that samples, as in `model.path`; in `dataset=faithful` the model of the run."""
    revision: str | None = None
    """Its commit, tag or branch on the hub, as in `model.revision`."""
    tokens: int = count(10_000_000, most=INT64)
    """Tokens to sample, at least; the block that reaches them is kept whole."""
    seed: int = random_seed(42)
    """Seed for the samples."""
    block: int = count(256, most=INT32)
    """Documents sampled together; another number gives other text."""
    longest: int = number(1024, least=2, most=INT32)
    """Most tokens of a document, BOS included; the model's context where that is shorter."""
    held_out_every: int = number(20, least=2, most=_RAREST_HELD_OUT)
    """One document in so many, chosen by its text, is held out of training and used for evaluation."""

    @property
    def model(self) -> ModelConfig:
        """The model that samples; float32, whose logits are nearest to exact."""
        return ModelConfig(path=self.path, revision=self.revision, dtype="float32")

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.path:
            found.append("dataset.path is empty: give the model that samples, as in model.path")
        if self.path == SYNTHETIC:
            found.append(f"dataset.path={SYNTHETIC}: it is no language model, and samples no text")
        known_home(found, "dataset.path", self.path)
        return found


@dataclass(frozen=True)
class SyntheticDataset(DatasetConfig):
    """Activations from a known dictionary, through `model=synthetic`: what matching finds can be checked."""

    name: str = "synthetic"
    features: int = count(200, most=_SYNTHETIC_FEATURES)
    """True features that all synthetic datasets of the same `world` share."""
    own: int = number(0, least=0, most=_SYNTHETIC_FEATURES)
    """Further features that only the datasets of this `variant` have."""
    world: int = random_seed(0)
    """Seed of the shared features."""
    variant: int = random_seed(0)
    """Seed of its own features and of its text."""
    active: float = positive(8.0)
    """Mean number of features that are active at a token."""
    zipf: float = number(0.5, least=0, most=4)
    """Frequencies fall with the rank of a feature to this power; 0: all alike."""
    correlation: float = fraction(0.0)
    """Probability that a feature follows its group of four, which fires together."""
    noise: float = number(0.1, least=0, most=10)
    """Standard deviation of the noise, relative to the signal's."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not number_problems(self) and self.active > (self.features + self.own) / 2:
            found.append(
                f"dataset.active={self.active}: at most half of the {self.features + self.own} features "
                "(dataset.features and own) can be active"
            )
        return found


@dataclass(frozen=True)
class PackingConfig:
    """Settings for packing documents into sequences of equal length."""

    seq_len: int = number(128, least=4, most=INT32)
    """Tokens per sequence, special tokens included."""
    bos_every_sequence: bool = True
    """True: BOS opens every sequence. False (the study): BOS at document starts only."""
    separate_documents: bool = True
    """Put the end-of-text token between documents."""
    max_document_tokens: int | None = count(None, most=INT64)
    """Maximum tokens per document, after which it is cut (the study: 1,024); null: no limit."""
    mask_special: bool = True
    """Exclude special-token positions from training, evaluation and patching."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "packing.").values())
        if self.max_document_tokens == 1 and not self.bos_every_sequence:
            found.append(
                "packing.max_document_tokens=1: must be at least 2 with packing.bos_every_sequence=false, "
                "where a document's first token is BOS"
            )
        return found
