"""Which SAEs are drawn together, and where the tables over them lie."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_sweep.analysis.positions import PositionTest
from sae_sweep.config import CommandConfig, RunConfig, TopKConfig, TrackingConfig
from sae_sweep.config.data import EmbeddedDataset
from sae_sweep.store import RunFolder, SweepFolder
from sae_sweep.tasks import feature_figures
from sae_sweep.tasks.analyse import _wanted
from sae_sweep.tasks.analysed import Analysed
from sae_sweep.tasks.feature_figures import FeatureSet, Written, _model_and_text, feature_sets, write_features


def written(layer: int, k: int = 16, seed: int = 49) -> Written:
    config = RunConfig(layer=layer, seed=seed, architecture=TopKConfig(k=k))
    name = config.base_name()
    return Written(Analysed(name, "id", config, RunFolder(Path(name)), lambda: pytest.fail("loaded")), {})


def names(sets):
    return {one.name: list(one.labels) for one in sets}


def test_saes_that_differ_in_their_layer_only_are_a_set_in_the_order_of_layers():
    given = [written(10), written(2), written(2, k=32), written(3, k=32)]
    assert names(feature_sets(given)) == {
        "gpt2-small_owt_topk_x16_k16_s49": ["layer 2", "layer 10"],
        "gpt2-small_owt_topk_x16_k32_s49": ["layer 2", "layer 3"],
    }


def test_others_are_drawn_twelve_at_a_time():
    given = [written(0), written(1), *(written(8, seed=seed) for seed in range(13))]
    found = names(feature_sets(given))
    assert list(found)[1:] == ["saes_1_to_12", "gpt2-small_L8_owt_topk_x16_k16_s12"]
    assert found["saes_1_to_12"] == [f"seed {seed}" for seed in range(12)]


def test_the_loss_of_the_language_model_says_which_text_is_read():
    one, other = written(0), written(0, seed=3)
    assert _model_and_text(FeatureSet("x", ["1", "2"], [one, other])) == "gpt2-small on owt"
    config = replace(other.sae.config, dataset=EmbeddedDataset())
    other = Written(replace(other.sae, config=config), {})
    text = _model_and_text(FeatureSet("x", ["1", "2"], [one, other]))
    assert text == "gpt2-small on owt, the first of 2 that these SAEs read"


def test_a_paper_reads_the_saes_of_several_layers_alone_if_there_are_any():
    layers, other = [written(1).sae, written(0).sae], written(8, seed=1).sae
    paper = CommandConfig(figures="paper")
    assert list(_wanted([*layers, other], paper)) == layers[::-1]
    assert list(_wanted([*layers, other], CommandConfig())) == [*layers, other]
    assert list(_wanted([other], paper)) == [other]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[Written]:
    """SAEs of two layers with their position tests; no figures are drawn of them."""
    monkeypatch.setattr(feature_figures, "_figures", lambda *_: iter(()))
    every, share = torch.ones(8).bool(), torch.full((8,), 0.5).double()
    test = PositionTest(share, share, every, every, 1.0, math.nan, math.nan, tokens=9, sequences=3)
    sae: Any = SimpleNamespace(W_dec=torch.eye(8))
    return [Written(replace(one.sae, load=lambda: sae), {"none": test}) for one in (written(2), written(3))]


def rows(folder: Path, name: str) -> list[str]:
    with (folder / f"{name}.csv").open() as file:
        return [row["sae"] for row in csv.DictReader(file)]


def test_the_table_of_one_sae_leaves_that_of_its_sweep_as_it_is(
    tested: list[Written], tmp_path: Path
) -> None:
    sweep, one = SweepFolder(tmp_path / "x"), tested[0].sae.name
    command = CommandConfig(tracking=TrackingConfig(backend="none"))
    write_features(sweep, tested, command)
    report = write_features(sweep, tested[:1], replace(command, sae=f"x/{one}"))
    assert rows(sweep.features, "position_features") == [one, tested[1].sae.name]
    assert rows(sweep.features, "unshared_position_features") == [one]
    assert rows(sweep.features / one, "position_features") == [one]
    assert report.files["position features"] == sweep.features / one / "position_features.csv"


def test_a_table_of_an_earlier_analysis_does_not_stay_beside_newer_ones(
    tested: list[Written], tmp_path: Path
) -> None:
    sweep = SweepFolder(tmp_path / "x")
    command = CommandConfig(tracking=TrackingConfig(backend="none"))
    write_features(sweep, tested, command)
    write_features(sweep, tested[:1], command)
    assert rows(sweep.features, "position_features") == [tested[0].sae.name]
    assert not list(sweep.features.glob("unshared_*"))
