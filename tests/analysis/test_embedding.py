"""UMAP of decoders: what is handed to it, what has no place, and what it makes of clusters."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch

from sae_sweep.analysis.embedding import random_dictionary, umap_embedding
from sae_sweep.config import SaeSweepError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The settings given to a stand-in for UMAP, which takes the first two columns."""
    settings: dict[str, object] = {}

    class Reducer:
        def __init__(self, **given: object) -> None:
            settings.update(given)

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            warnings.warn("Graph is not fully connected", UserWarning, stacklevel=1)
            return rows[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Reducer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    return settings


def rows(n: int) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(n))


def test_it_is_seeded_and_takes_fewer_neighbours_of_fewer_rows(asked: dict[str, object]) -> None:
    umap_embedding(rows(40), metric="cosine", seed=2**32 + 5)
    assert asked == {"n_neighbors": 15, "metric": "cosine", "random_state": 5, "n_jobs": 1}
    umap_embedding(rows(6).requires_grad_())
    assert (asked["n_neighbors"], asked["metric"]) == (5, "euclidean")


@pytest.mark.parametrize(("metric", "without"), [("euclidean", {3, 5}), ("cosine", {0, 3, 5})])
@pytest.mark.usefixtures("asked")
def test_rows_without_a_direction_have_no_place(metric: str, without: set[int]) -> None:
    decoder = rows(9)
    decoder[0], decoder[3], decoder[5, 2] = 0, torch.nan, torch.inf
    found = umap_embedding(decoder, metric=metric)
    assert set(np.flatnonzero(np.isnan(found).any(1))) == without
    there = sorted(set(range(9)) - without)
    np.testing.assert_array_equal(found[there], decoder[there, :2].numpy())


@pytest.mark.usefixtures("asked")
def test_too_few_rows_and_another_metric_are_one_line() -> None:
    with pytest.raises(SaeSweepError, match="UMAP: 3 features have a decoder direction, and it needs 4"):
        umap_embedding(rows(3))
    with pytest.raises(SaeSweepError, match="metric='l2' is none of euclidean, cosine"):
        umap_embedding(rows(9), metric="l2")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SaeSweepError, match=r"not installed \(umap\): pip install 'sae-sweep\[figures\]'"):
        umap_embedding(rows(9))


def test_a_random_dictionary_keeps_the_norms_and_nothing_else() -> None:
    decoder = rows(400) * torch.linspace(0, 3, 400)[:, None]
    found = random_dictionary(decoder, seed=1)
    torch.testing.assert_close(found.norm(dim=1), decoder.norm(dim=1))
    cosines = torch.nn.functional.cosine_similarity(found, decoder)[1:]
    assert cosines.mean().abs() < 0.1
    assert not torch.equal(found, random_dictionary(decoder, seed=2))
    assert torch.equal(found, random_dictionary(decoder, seed=1))
