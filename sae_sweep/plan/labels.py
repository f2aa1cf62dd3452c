"""Tells different texts, and different models, of one label apart: `files-a` and `files-b`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sae_sweep.config import DatasetConfig, ModelConfig, RunConfig, digest
from sae_sweep.config.names import LONGEST_NAME, made_plain, unquoted, without_suffix

_DIGITS = 6
"""Digits of a content's digest, where nothing else tells two sources apart."""


class Source(NamedTuple):
    """A text or a model that runs read, by its content."""

    label: str
    fingerprint: str
    path: str
    revision: str


def tell_apart(runs: Sequence[tuple[RunConfig, Mapping[str, str]]]) -> list[RunConfig]:
    """The runs, with other labels where one label stands for texts or models of different content.

    Args:
        runs: each with the fingerprints of its text and its model.
    """
    datasets = [_dataset(run.dataset, prints.get("corpus", "")) for run, prints in runs]
    models = [_model(run.model, prints.get("model", "")) for run, prints in runs]
    texts, lms = _labels(datasets), _labels(models)
    found = []
    for (run, _), dataset, model in zip(runs, datasets, models, strict=True):
        named = replace(run, dataset=replace(run.dataset, name=texts[dataset])) if dataset in texts else run
        found.append(replace(named, model=replace(run.model, name=lms[model])) if model in lms else named)
    return found


def _dataset(config: DatasetConfig, fingerprint: str) -> Source:
    path, revision = (str(getattr(config, key, "")) for key in ("path", "revision"))
    return Source(config.name, fingerprint, path, revision)


def _model(config: ModelConfig, fingerprint: str) -> Source:
    return Source(config.label, fingerprint, config.path, config.revision or "")


def _labels(sources: Sequence[Source]) -> dict[Source, str]:
    """New labels of those sources whose label another content has, too."""
    contents: dict[str, dict[str, Source]] = {}
    for source in sources:
        contents.setdefault(source.label, {}).setdefault(source.fingerprint, source)
    taken = {label for label, found in contents.items() if len(found) == 1}
    new: dict[tuple[str, str], str] = {}
    for label, found in contents.items():
        if len(found) > 1:
            labels = _distinct(list(found.values()), taken)
            taken.update(labels)
            new.update({(label, one): name for one, name in zip(found, labels, strict=True)})
    return {one: new[one.label, one.fingerprint] for one in sources if (one.label, one.fingerprint) in new}


def _distinct(sources: Sequence[Source], taken: set[str]) -> list[str]:
    """Different labels for sources of one label: by path, else by revision, else by content."""
    depth = max(len(Path(source.path).parts) for source in sources)
    tried = [[_by_path(source, parts) for source in sources] for parts in range(1, depth + 1)]
    tried.append([_joined(source, source.revision[:12]) for source in sources])
    tried.append([_joined(source, digest(source.fingerprint)[:_DIGITS]) for source in sources])
    for found in tried:
        short = all(len(label.encode()) <= LONGEST_NAME for label in found)
        if short and len({*found, *taken}) == len(found) + len(taken):
            return found
    return [f"{source.label[:20]}-{digest(source)}" for source in sources]


def _by_path(source: Source, parts: int) -> str:
    *folders, name = Path(source.path).parts[-parts:] or [""]
    return _joined(source, "-".join([*folders, without_suffix(name)]))


def _joined(source: Source, detail: str) -> str:
    """The label and what tells its sources apart, unless that ends in the label: `files-a`, but `a-lm`."""
    detail = made_plain(unquoted(detail))
    if detail.endswith(source.label):
        return detail
    return f"{source.label}-{detail}" if detail else source.label
