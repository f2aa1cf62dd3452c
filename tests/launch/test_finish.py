"""Sharing of baselines between the evaluations of a group."""

from pathlib import Path

import numpy as np
import torch

from sae_sweep.activations import load_language_model
from sae_sweep.config import EvaluationConfig, FilesDataset, ModelConfig, RunConfig, TopKConfig
from sae_sweep.launch.finish import Finisher
from sae_sweep.saes import build_sae
from tests.activations.conftest import save_gpt2


def test_residuals_are_kept_of_one_layer_at_a_time(tmp_path: Path) -> None:
    model = ModelConfig(path=str(save_gpt2(tmp_path)), dtype="float32")
    finisher = Finisher(load_language_model(model, torch.device("cpu")), None, 0.7)  # type: ignore[arg-type]
    tokens = np.random.default_rng(0).integers(1, 200, (6, 16), dtype=np.int32)
    finisher._held_out[EvaluationConfig().tokens] = tokens, tokens > 5
    sae = build_sae(TopKConfig(k=2), 16, 32, seed=0, numerics="modern")

    def evaluated(layer: int) -> dict[str, float]:
        dataset = FilesDataset(name="files", path="texts")
        return finisher._evaluate(
            sae, RunConfig(architecture=TopKConfig(k=2), dataset=dataset, layer=layer)
        ).metrics

    def kept() -> dict[int, bool]:
        return {layer: known.residuals is not None for (layer, _), known in finisher._baselines.items()}

    first = evaluated(1)
    assert kept() == {1: True}
    evaluated(2)
    assert kept() == {1: False, 2: True}
    assert evaluated(1) == first
