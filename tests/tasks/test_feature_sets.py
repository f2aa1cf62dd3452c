"""Which SAEs are drawn together."""

from pathlib import Path

import pytest

from sae_sweep.config import RunConfig, TopKConfig
from sae_sweep.store import RunFolder
from sae_sweep.tasks.analysed import Analysed
from sae_sweep.tasks.feature_figures import Written, feature_sets


def written(layer: int, k: int = 16, seed: int = 49) -> Written:
    config = RunConfig(layer=layer, seed=seed, architecture=TopKConfig(k=k))
    name = config.base_name()
    return Written(Analysed(name, "id", config, RunFolder(Path(name)), lambda: pytest.fail("loaded")), {})


def names(sets):
    return {one.name: list(one.labels) for one in sets}


def test_saes_that_differ_in_their_layer_only_are_a_set_in_the_order_of_layers():
    given = [written(10), written(2), written(2, k=32), written(3, k=32)]
    assert names(feature_sets(given, layers_only=True)) == {
        "gpt2-small_owt_topk_x16_k16_s49": ["layer 2", "layer 10"],
        "gpt2-small_owt_topk_x16_k32_s49": ["layer 2", "layer 3"],
    }


def test_others_are_drawn_twelve_at_a_time_unless_layers_alone_are_asked_for():
    given = [written(0), written(1), *(written(8, seed=seed) for seed in range(13))]
    assert len(feature_sets(given, layers_only=True)) == 1
    found = names(feature_sets(given, layers_only=False))
    assert list(found)[1:] == ["saes_1_to_12", "gpt2-small_L8_owt_topk_x16_k16_s12"]
    assert found["saes_1_to_12"] == [f"seed {seed}" for seed in range(12)]


def test_without_layers_the_others_are_drawn_for_a_paper_too():
    (found,) = feature_sets([written(8)], layers_only=True)
    assert found.name == "gpt2-small_L8_owt_topk_x16_k16_s49"
