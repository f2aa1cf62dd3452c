"""Opens and fingerprints the text that a dataset config names: one table from config class to text source."""

import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sae_sweep.config import (
    DatasetConfig,
    DomainDataset,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    MixDataset,
    SaeSweepError,
    SyntheticDataset,
    digest,
)
from sae_sweep.text.domain import SELECTION, DomainText, selection_fingerprint
from sae_sweep.text.embedded import EmbeddedText
from sae_sweep.text.faithful import FaithfulText
from sae_sweep.text.files import LocalFiles
from sae_sweep.text.hub import HubText
from sae_sweep.text.mixture import Mixture, Text
from sae_sweep.text.source import TextSource
from sae_sweep.text.synthetic import SyntheticText


class _SourceClass(Protocol):
    """A subclass of `TextSource`."""

    def __call__(self, dataset: Any, cache: Path, /) -> TextSource: ...

    def fingerprint(self, dataset: Any, cache: Path, /) -> str:
        """Identify the content of the text that `dataset` names."""
        ...


_SOURCES: dict[type[DatasetConfig], _SourceClass] = {
    EmbeddedDataset: EmbeddedText,
    FilesDataset: LocalFiles,
    FaithfulDataset: FaithfulText,
    HubDataset: HubText,
    SyntheticDataset: SyntheticText,
}


def open_text(dataset: DatasetConfig, cache: Path) -> Text:
    """Open the text that a config names.

    Args:
        dataset: one of the dataset configs.
        cache: folder in which the embedded corpora are built.

    Raises:
        SaeSweepError: if the text is missing, empty or unreadable, the hub cannot be reached, or two parts
            of a mixture are the same text.
    """
    if not isinstance(dataset, MixDataset):
        return _open_one(dataset, cache)
    parts = _mixed(dataset, cache)
    sources = [_open_one(part.dataset, cache) for part in parts]
    if len(sources) == 1:
        return sources[0]
    return Mixture(f"dataset={dataset.name}", sources, [part.weight for part in parts])


def open_documents(dataset: DatasetConfig, cache: Path) -> TextSource:
    """Open a text whose documents are read, not its sequences.

    Raises:
        SaeSweepError: as `open_text`, or if it is a mixture.
    """
    text = open_text(dataset, cache)
    if isinstance(text, Mixture):
        raise SaeSweepError(f"dataset={dataset.name} is a mixture, which has no documents: name its parts")
    return text


def fingerprint(dataset: DatasetConfig, cache: Path) -> str:
    """Identify the content of the text that a config names.

    Embedded corpora and local files are hashed. A hub dataset is identified by repository, revision and
    file pattern, without network access. A mixture is identified by the content and the weights of its parts,
    whatever their names and their order; one with a single part is that part. A domain is identified by
    what is sought (words, or the content of the seeds, and the encoder's weights) and by the text that it is
    selected from.
    """
    if isinstance(dataset, DomainDataset) and dataset.source is not None:
        source = [fingerprint(dataset.source, cache), dataset.source.identity()]
        sought = [dataset.words, dataset.documents, *selection_fingerprint(dataset)]
        return f"{SELECTION}-{digest([*source, *sought])}"
    if not isinstance(dataset, MixDataset):
        return _source_class(dataset).fingerprint(dataset, cache)
    parts = _mixed(dataset, cache)
    if len(parts) == 1:
        return parts[0].fingerprint
    known = [[part.fingerprint, part.dataset.identity(), part.weight] for part in parts]
    return "mix-" + digest(known)


def _open_one(dataset: DatasetConfig, cache: Path) -> TextSource:
    if isinstance(dataset, DomainDataset):
        return _open_domain(dataset, fingerprint(dataset, cache), cache)
    return _source_class(dataset)(dataset, cache)


@functools.lru_cache(maxsize=8)
def _open_domain(dataset: DomainDataset, content: str, cache: Path) -> DomainText:
    """Select the documents of a domain once for all groups of a command."""
    if dataset.source is None:
        raise SaeSweepError(f"dataset={dataset.name}: dataset.of names no dataset")
    return DomainText(dataset, _open_one(dataset.source, cache), cache / "domains" / f"{content}.json")


class _Part(NamedTuple):
    """A dataset that has a share in a mixture."""

    fingerprint: str
    dataset: DatasetConfig
    weight: float


def _mixed(mixture: MixDataset, cache: Path) -> list[_Part]:
    """The parts of a mixture in the order of their fingerprints, which no spelling changes."""
    parts = [_Part(fingerprint(part, cache), part, weight) for part, weight in mixture.read]
    parts.sort(key=lambda part: part.fingerprint)
    for one, other in itertools.pairwise(parts):
        if one.fingerprint == other.fingerprint:
            raise SaeSweepError(
                f"dataset={mixture.name}: {one.dataset.name} and {other.dataset.name} are the same text: "
                "give it one weight"
            )
    return parts


def _source_class(dataset: DatasetConfig) -> _SourceClass:
    if type(dataset) not in _SOURCES:
        raise SaeSweepError(f"dataset={dataset.name}: a {type(dataset).__name__} cannot be read as text")
    return _SOURCES[type(dataset)]
