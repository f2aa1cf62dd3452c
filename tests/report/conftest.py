import dataclasses
import itertools

import pytest
import torch

from sae_sweep.analysis import Comparison, ComparisonEntry, Evaluation, compare
from sae_sweep.analysis.statistics import FeatureStatistics
from sae_sweep.report.panels import Panel
from tests.report.panels import panel


def _rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))


def _entries() -> list[ComparisonEntry]:
    return [
        ComparisonEntry(
            name=f"pico_L6_{dataset}_topk_s{seed}",
            keys={"dataset": dataset, "seed": seed},
            decoder=torch.cat(
                [_rows(40, len(dataset)), _rows(20, seed), _rows(20, 10 * seed + len(dataset))]
            ),
            init_match=0.25 if (dataset, seed) == ("docs", 2) else 0.02,
            densities=torch.arange(80).double() / 1000,
        )
        for dataset, seed in itertools.product(("docs", "sources"), (1, 2))
    ]


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """Two datasets, two seeds: half of the features follow one, a quarter the other; one undertrained."""
    return compare(_entries())


@pytest.fixture(scope="session")
def mixed_comparison() -> Comparison:
    """The same SAEs; the third, seed 1 on sources, was trained with other numerics for a part of the time."""
    return compare([dataclasses.replace(one, mixed="sources_topk_s1" in one.name) for one in _entries()])


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    features = FeatureStatistics(30, torch.device("cpu"))
    f = torch.relu(_rows(500, 0)[:, :20] - torch.linspace(-1, 4, 20))
    features.update(torch.cat([f, torch.zeros(500, 10)], 1))
    return Evaluation(
        metrics={"tokens": 500.0, "l0": features.l0},
        densities=features.densities,
        mean_activations=features.mean_activations,
        max_activations=features.max_activations,
        density_histogram=features.density_histogram(),
        activation_histogram=features.activation_histogram(),
    )


@pytest.fixture(scope="module")
def panels() -> list[Panel]:
    """SAEs of three layers."""
    return [panel(layer) for layer in range(3)]
