"""Figures over layers: decoders in two dimensions, and features that follow the position."""

import dataclasses

import numpy as np
import pytest

from sae_sweep.analysis.position_table import PositionRow, UnsharedRow
from sae_sweep.config import SaeSweepError
from sae_sweep.report.decoder_figures import joint_umap_figure, position_features_figure, umap_figure
from sae_sweep.report.panels import Panel
from tests.report.panels import (
    DEAD,
    FEATURES,
    curve,
    only,
    texts,
)


def test_umaps_show_dead_features_and_a_random_dictionary(panels: list[Panel]) -> None:
    places = [np.random.default_rng(seed).normal(size=(FEATURES, 2)) for seed in range(4)]
    figure, numbers = umap_figure(panels, places[:3], places[3], settings="cosine, seed 0")
    dead, live = figure.axes[2].collections
    assert (len(dead.get_offsets()), len(live.get_offsets())) == (DEAD, FEATURES - DEAD)
    np.testing.assert_array_equal(only(numbers, panel="random dictionary")["umap_2"], places[3][:, 1])
    assert only(numbers, panel="layer 1")["live"].sum() == FEATURES - DEAD
    assert "7; cosine, seed 0" in texts(figure)
    with pytest.raises(SaeSweepError, match="2 embeddings for 3 panels"):
        umap_figure(panels, places[:2], places[3], settings="")

    joint = joint_umap_figure(panels, np.concatenate(places[:3]), np.concatenate(places[1:]), settings="")
    stored = only(joint.numbers, panel="layer 1", dictionary="decoder")
    np.testing.assert_array_equal(stored["umap_1"], places[1][:, 0])
    (dots,) = joint.figure.axes[0].collections
    where = {
        tuple(place): tuple(colour)
        for place, colour in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)
    }
    assert where[tuple(places[0][0])] == where[tuple(places[0][1])] != where[tuple(places[1][0])]
    assert not np.array_equal(dots.get_offsets()[:40], places[0])  # no SAE hides those before it
    with pytest.raises(SaeSweepError, match="40 rows of random for 120 features"):
        joint_umap_figure(panels, np.concatenate(places[:3]), places[0], settings="")


def row(layer: int, change: str = "none", sae: str = "") -> PositionRow:
    share = 0.01 * (layer + 1)
    return PositionRow(
        sae or f"gpt2_L{layer}", layer, change, 100, 9, None, share, share / 2, 2 * share, 900, 20
    )


def test_position_features_by_layer_with_intervals() -> None:
    unshared = [
        UnsharedRow(f"gpt2_L{i}", f"gpt2_L{i + 1}", i, 100, 50, 9, 6, 0.1, 0.3, 0.2, 0.1, 0.4, 0.7)
        for i in (0, 1)
    ]
    rows = [row(layer, change) for layer in (0, 1, 2) for change in ("none", "shuffle")]
    figure, numbers = position_features_figure(rows, unshared)
    assert list(curve(figure.axes[0], 1)) == pytest.approx([1, 2, 3])
    assert list(curve(figure.axes[1], 1)) == pytest.approx([20, 20])
    assert numbers.to_pylist()[-1] == {
        "run": "gpt2_L1", "layer": 1, "drawn": "difference", "value": 0.2, "low": 0.1, "high": 0.4,
        "undertrained": None,
    }  # fmt: skip
    weak = [dataclasses.replace(one, undertrained=one.layer == 1) for one in rows]
    axes = position_features_figure(weak, unshared).figure.axes[0]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[pytest.approx(0.88)], [pytest.approx(1.12)]]
    assert len(position_features_figure(rows).figure.axes) == 1
    with pytest.raises(SaeSweepError, match="gpt2_L0 and other read the same layer"):
        position_features_figure([row(0), row(0, sae="other")])
    with pytest.raises(SaeSweepError, match="at least one tested SAE"):
        position_features_figure([])
