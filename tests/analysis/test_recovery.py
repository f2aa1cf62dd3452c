import pytest
import torch

from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.family_results import family_results
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.analysis.recovery import recovery
from sae_sweep.config import MatchingConfig

SHARED, OWN = random_rows(12, 40, 0), {"one": random_rows(5, 40, 1), "other": random_rows(5, 40, 2)}


def entry(name, dataset, seed, rows):
    noise = 0.2 * random_rows(len(rows), 40, 10 + seed)
    decoder = torch.nn.functional.normalize(rows + noise, dim=1)[torch.randperm(len(rows))]
    return ComparisonEntry(f"{name}", {"dataset": dataset, "seed": seed}, decoder, init_match=0.0)


def sweep(lost=0):
    """Four SAEs that found all true features, of which the last lacks the first `lost` shared ones."""
    found = []
    for place, (dataset, seed) in enumerate([("one", 1), ("one", 2), ("other", 1), ("other", 2)]):
        rows = SHARED[lost:] if place == 3 else SHARED
        found.append(entry(f"run{place}", dataset, seed, torch.cat([rows, OWN[dataset]])))
    return found


def recovered(entries):
    return recovery(family_results(entries, MatchingConfig()), entries, SHARED, OWN)


def test_all_is_recovered_where_every_sae_found_all():
    rows = recovered(sweep())
    assert [(row.kind, row.dataset) for row in rows] == [
        ("universal", ""),
        ("only", "one"),
        ("only", "other"),
    ]
    assert [(row.families, row.right, row.features, row.of_all) for row in rows] == [
        (12, 12, 12, 12),
        *[(5, 5, 5, 5)] * 2,
    ]
    assert all(row.precision == row.recall == 1 for row in rows)


def test_recall_is_of_the_features_that_every_sae_found():
    universal = recovered(sweep(lost=3))[0]
    assert (universal.families, universal.features, universal.of_all, universal.recall) == (9, 9, 12, 1)


def test_a_family_of_something_else_lowers_the_precision():
    extra, entries = random_rows(2, 40, 77), []
    for one in sweep():
        decoder = torch.cat([one.decoder, extra])
        entries.append(ComparisonEntry(one.name, one.keys, decoder, init_match=0.0))
    universal = recovered(entries)[0]
    assert (universal.families, universal.right) == (14, 12)
    assert universal.precision == pytest.approx(12 / 14)


def test_a_dataset_of_one_sae_has_no_families_of_its_own_and_no_row():
    rows = recovered(sweep()[:3])
    assert [row.dataset for row in rows] == ["", "one"]
