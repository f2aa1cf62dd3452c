"""Finds the ladders of a sweep: SAEs that read two texts in different shares, alike in all else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sae_sweep.analysis import Comparison
from sae_sweep.analysis.dose import Dosed, dose_curves
from sae_sweep.config import DatasetConfig, MixDataset
from sae_sweep.report.dose import Ladder
from sae_sweep.report.formatting import described
from sae_sweep.tasks.finished import Finished

Texts = tuple[DatasetConfig, DatasetConfig]


def find_ladders(found: Sequence[Finished], comparison: Comparison) -> list[Ladder]:
    """The ladders among compared SAEs: each has SAEs of both texts alone, and of both.

    Args:
        found: the runs, with their swept keys.
        comparison: of all of them.
    """
    groups: dict[tuple[str, Texts], None] = {}
    for one in found:
        if len(texts := _shares(one.config.dataset)) == 2:
            groups.setdefault((_else(one), _ordered(texts)), None)
    ladders = [_ladder(found, comparison, label, texts) for label, texts in groups]
    whole = [one for one in ladders if one.points]
    return [one._replace(label="") for one in whole] if len(whole) == 1 else whole


def _ladder(found: Sequence[Finished], comparison: Comparison, label: str, texts: Texts) -> Ladder:
    members = [one for one in found if _else(one) == label and set(_shares(one.config.dataset)) <= set(texts)]
    runs = [
        Dosed(
            one.entry.name,
            one.config.seed,
            _shares(one.config.dataset).get(texts[1], 0.0),
            one.entry.init_match > comparison.undertrained_above,
        )
        for one in members
    ]
    names = {run.name for run in runs}
    matched = {
        pair: nearest.cosine > comparison.threshold
        for pair, nearest in comparison.nearest.items()
        if names.issuperset(pair)
    }
    points = dose_curves(runs, matched) if {0.0, 1.0} <= {run.share for run in runs} else []
    labels = _labels(members)
    about = described([one.config for one in members])
    return Ladder(label, (labels[texts[0]], labels[texts[1]]), tuple(run.name for run in runs), points, about)


def _shares(dataset: DatasetConfig) -> dict[DatasetConfig, float]:
    """The share of each text that a dataset reads, by the text without its label."""
    read = dataset.read if isinstance(dataset, MixDataset) else [(dataset, 1.0)]
    return {_unlabelled(part): weight for part, weight in read}


def _unlabelled(text: DatasetConfig) -> DatasetConfig:
    """The text itself: a path says what it is, and without one its name does."""
    return replace(text, name="" if hasattr(text, "path") else text.name, exhausted="repeat")


def _ordered(texts: Mapping[DatasetConfig, float]) -> Texts:
    first, second = sorted(texts, key=lambda text: str(text.as_dict()))
    return first, second


def _labels(members: Sequence[Finished]) -> dict[DatasetConfig, str]:
    """Names of the texts, as the mixtures call them."""
    return {
        _unlabelled(part): part.name
        for one in members
        if isinstance(one.config.dataset, MixDataset)
        for part, _ in one.config.dataset.read
    }


def _else(one: Finished) -> str:
    """The swept keys of a run other than its text and its seed."""
    keys = {key: value for key, value in one.entry.keys.items() if key not in ("dataset", "seed")}
    return ", ".join(f"{key}={value}" for key, value in keys.items())
