"""What the SAEs of synthetic activations, and the families of them, found of the true features."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from sae_sweep.activations.synthetic import true_features
from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.family_results import FamilyResults
from sae_sweep.analysis.measured import Subject, measure_pairs
from sae_sweep.analysis.recovery import Recovery, recovery
from sae_sweep.config import MatchingConfig, SyntheticDataset
from sae_sweep.report.family_text import recovery_text
from sae_sweep.report.files import table_of, write_csv
from sae_sweep.report.measure_files import write_truth
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import SweepFolder, hold_sweep
from sae_sweep.tasks.finished import Finished


def check_against_truth(
    folder: SweepFolder, found: Sequence[Finished], results: FamilyResults | None, config: MatchingConfig
) -> str:
    """Measure each SAE of synthetic activations against its true features, and what families recovered.

    Returns a table for the terminal; empty if an SAE was trained on a language model's activations.
    """
    datasets = [one.config.dataset for one in found]
    if not all(isinstance(dataset, SyntheticDataset) for dataset in datasets):
        return ""
    known: list[SyntheticDataset] = [one for one in datasets if isinstance(one, SyntheticDataset)]
    truths = [_truth_of(one, dataset) for one, dataset in zip(found, known, strict=True)]
    pairs = [(i, len(found) + i) for i in range(len(found))]
    every = replace(
        config, measures="all", matrix="decoder", side="features", absolute=False, nulls=[], tokens=None
    )
    subjects = [*(one.subject for one in found), *truths]
    measured = measure_pairs(subjects, pairs, every, between=raise_if_requested)
    rows: list[Recovery] = []
    if results is not None and len({(one.world, one.features) for one in known}) == 1:
        rows = recovery(results, [one.entry for one in found], *_true_sets(found, known))
    with hold_sweep(folder):
        write_truth(folder.matching / "truth.csv", measured)
        if rows:
            write_csv(folder.families / "recovery.csv", table_of(Recovery, rows))
    return recovery_text(measured, rows)


def _true_sets(
    found: Sequence[Finished], known: Sequence[SyntheticDataset]
) -> tuple[Tensor, dict[str, Tensor]]:
    """True features that all datasets share, and each one's own by its value of the key `dataset`."""
    if not all("dataset" in one.entry.keys for one in found):
        return true_features(known[0]), {}
    shared = known[0].features
    own = {
        str(one.entry.keys["dataset"]): true_features(dataset)[shared:]
        for one, dataset in zip(found, known, strict=True)
        if dataset.own
    }
    return true_features(known[0])[:shared], own


def _truth_of(one: Finished, dataset: SyntheticDataset) -> Subject:
    """The true features as an SAE that has nothing to learn."""
    rows = true_features(dataset)
    entry = ComparisonEntry(f"truth of {one.entry.name}", one.entry.keys, rows, init_match=0.0)
    weights = _Weights(rows.T, rows)
    return Subject(entry, lambda: weights)


class _Weights(NamedTuple):
    W_enc: Tensor
    W_dec: Tensor
