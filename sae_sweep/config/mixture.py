"""Configs of datasets made of others, a mixture and a domain, and the table of all kinds of datasets."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.config.checks import INT32, count, shown
from sae_sweep.config.data import (
    DatasetConfig,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    SyntheticDataset,
)
from sae_sweep.config.folders import known_home
from sae_sweep.config.plain import compact, digest

MIXTURE = "mix"
"""Label of a mixture until its weights name it."""
_ROUNDING = 1e-6
"""Largest difference from 1 that the weights of a mixture may sum to."""


@dataclass(frozen=True)
class MixDataset(DatasetConfig):
    """A mixture of datasets: each sequence is from one of them, in shares that are exact at every point."""

    name: str = MIXTURE
    """Label in run names and tables; `mix`: made from the weights, such as `owt-0.75-pile-0.25`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of the sequences by name of a dataset: `{owt: 0.75, pile: 0.25}`. They sum to 1."""
    parts: dict[str, DatasetConfig] = field(default_factory=dict)
    """The datasets that `weights` names; filled in from `conf/dataset`."""

    def __hash__(self) -> int:
        return hash(digest(self.as_dict()))

    @property
    def on_hub(self) -> bool:
        return any(part.on_hub for part, _ in self.read)

    @property
    def read(self) -> list[tuple[DatasetConfig, float]]:
        """The datasets that have a share, and that share."""
        return [
            (dataclasses.replace(self.parts[name], exhausted=self.exhausted), float(weight))
            for name, weight in self.weights.items()
            if weight > 0
        ]

    def identity(self) -> dict[str, Any]:
        """That of the only dataset with a share, if there is one: it is the same text."""
        if len(self.read) == 1:
            return self.read[0][0].identity()
        return {"exhausted": self.exhausted}

    def as_dict(self) -> dict[str, Any]:
        parts = {name: part.as_dict() for name, part in self.parts.items()}
        return {**super().as_dict(), "parts": parts}

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.weights:
            return [*found, "dataset=mix needs weights: dataset.weights={stdlib_docs:0.75,stdlib_code:0.25}"]
        for name, weight in self.weights.items():
            if type(weight) not in (int, float) or not 0 <= weight <= 1:
                found.append(f"dataset.weights.{name}={weight}: must be between 0 and 1")
        if not found and abs(math.fsum(self.weights.values()) - 1) > _ROUNDING:
            found.append(
                f"dataset.weights sum to {math.fsum(self.weights.values()):.6g} "
                f"({mixture_label(self.weights)}): they must sum to 1"
            )
        for name, part in self.parts.items():
            if isinstance(part, MixDataset | SyntheticDataset):
                found.append(f"dataset.weights.{name}: a {type(part).__name__} cannot be part of a mixture")
            else:
                found += [f"dataset.weights.{name}: {problem}" for problem in part.problems()]
        if missing := [name for name in self.weights if name not in self.parts]:
            found.append(f"dataset.parts lacks {', '.join(missing)}")
        return found


@dataclass(frozen=True)
class DomainDataset(DatasetConfig):
    """The documents of another dataset that are nearest to some keywords, or to example documents."""

    name: str = "domain"
    of: str = ""
    """Dataset to select from: another choice of `dataset`, on this disk."""
    keywords: list[str] = field(default_factory=list)
    """Words that make up the domain: `[asyncio,await]`; a document need not have all. Or give `seeds`."""
    seeds: str = ""
    """Example documents of the domain: a file, a folder or a glob, as in `dataset=files`, with `text` as the
    key of their text. Documents are ranked by their mean nearness to the examples."""
    encoder: str | None = None
    """Transformers encoder by whose cosine documents are compared: a folder, or its name on the Hugging Face
    hub. null: by words (BM25)."""
    documents: int = count(500, most=INT32)
    """Training documents that are selected at most, and held-out ones that are as near to the keywords."""
    source: DatasetConfig | None = None
    """The dataset that `of` names; filled in from `conf/dataset`."""

    def __hash__(self) -> int:
        return hash(digest(self.as_dict()))

    @property
    def words(self) -> list[str]:
        """The distinct words of the keywords, whatever their order, as BM25 splits and compares them."""
        return words_of(self.keywords)

    def identity(self) -> dict[str, Any]:
        """Its fingerprint names what is selected, and from what."""
        return {"exhausted": self.exhausted}

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "source": self.source.as_dict() if self.source else None}

    def _sought_problems(self) -> list[str]:
        """What is wrong with what is sought: keywords or seeds, and the encoder."""
        found: list[str] = []
        if self.keywords and self.seeds:
            found.append("dataset.keywords and dataset.seeds: give one of them")
        elif not self.keywords and not self.seeds.strip():
            found.append(
                "dataset=domain needs dataset.keywords=[WORD,WORD], or dataset.seeds=FOLDER of examples"
            )
        elif self.keywords and not self.words:
            found.append(f"dataset.keywords={shown(self.keywords)}: they hold no word of two letters or more")
        for key, path in (("dataset.seeds", self.seeds), ("dataset.encoder", self.encoder)):
            known_home(found, key, path)
        if self.encoder is not None and not self.encoder.strip():
            found.append("dataset.encoder is empty: name one, or write null")
        return found

    def problems(self) -> list[str]:
        found = super().problems()
        found += self._sought_problems()
        if not self.of:
            found.append("dataset=domain needs dataset.of: the name of a dataset to select from")
        elif self.source is None:
            found.append(f"dataset.source lacks {self.of}")
        elif isinstance(self.source, DomainDataset | MixDataset | SyntheticDataset):
            found.append(f"dataset.of={self.of}: nothing can be selected from a {type(self.source).__name__}")
        elif self.source.on_hub:
            found.append(
                f"dataset.of={self.of}: a selection reads the whole text, and this one is on the hub: "
                "download it, and name it in a file of dataset=files"
            )
        else:
            found += [f"dataset.of={self.of}: {problem}" for problem in self.source.problems()]
        return found


def texts_of(dataset: DatasetConfig) -> list[DatasetConfig]:
    """The texts that have documents: the parts of a mixture that have a share, else the dataset itself."""
    return [part for part, _ in dataset.read] if isinstance(dataset, MixDataset) else [dataset]


def sampled_texts(dataset: DatasetConfig) -> list[FaithfulDataset]:
    """The texts that a language model has to sample before a dataset can be read."""
    sources = [text.source if isinstance(text, DomainDataset) else text for text in texts_of(dataset)]
    return [source for source in sources if isinstance(source, FaithfulDataset)]


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words of some texts, as BM25 splits and compares them."""
    return sorted({word for text in texts for word in re.findall(r"\w\w+", text.lower())})


def mixture_label(weights: Mapping[str, float]) -> str:
    """What is mixed, with its shares: `owt-0.75-pile-0.25`; a text alone has its own name."""
    live = {name: weight for name, weight in weights.items() if weight} or weights
    return "-".join(live if len(live) == 1 else [f"{name}-{compact(one)}" for name, one in live.items()])


_KINDS: tuple[type[DatasetConfig], ...] = (
    *(DatasetConfig, EmbeddedDataset, HubDataset, FilesDataset, FaithfulDataset),
    *(SyntheticDataset, MixDataset, DomainDataset),
)
DATASETS = {kind.__name__: kind for kind in _KINDS}
"""Kinds of datasets, as files name them."""
