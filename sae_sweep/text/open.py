"""Opens and fingerprints the text that a dataset config names: one table from config class to text source."""

from pathlib import Path
from typing import Any, Protocol

from sae_sweep.config import (
    DatasetConfig,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    SaeSweepError,
    SyntheticDataset,
)
from sae_sweep.text.embedded import EmbeddedText
from sae_sweep.text.faithful import FaithfulText
from sae_sweep.text.files import LocalFiles
from sae_sweep.text.hub import HubText
from sae_sweep.text.source import TextSource
from sae_sweep.text.synthetic import SyntheticText


class _SourceClass(Protocol):
    """A subclass of `TextSource`."""

    def __call__(self, dataset: Any, cache: Path, /) -> TextSource: ...

    def fingerprint(self, dataset: Any, cache: Path, /) -> str: ...


_SOURCES: dict[type[DatasetConfig], _SourceClass] = {
    EmbeddedDataset: EmbeddedText,
    FilesDataset: LocalFiles,
    FaithfulDataset: FaithfulText,
    HubDataset: HubText,
    SyntheticDataset: SyntheticText,
}


def open_text(dataset: DatasetConfig, cache: Path) -> TextSource:
    """Open the text that a config names.

    Args:
        dataset: one of the dataset configs.
        cache: folder in which the embedded corpora are built.

    Raises:
        SaeSweepError: if the text is missing, empty or unreadable, or the hub cannot be reached.
    """
    return _source_class(dataset)(dataset, cache)


def fingerprint(dataset: DatasetConfig, cache: Path) -> str:
    """Identify the content of the text that a config names.

    Embedded corpora and local files are hashed. A hub dataset is identified by repository, revision and
    file pattern, without network access.
    """
    return _source_class(dataset).fingerprint(dataset, cache)


def _source_class(dataset: DatasetConfig) -> _SourceClass:
    if type(dataset) not in _SOURCES:
        raise SaeSweepError(f"dataset={dataset.name}: a {type(dataset).__name__} cannot be read as text")
    return _SOURCES[type(dataset)]
