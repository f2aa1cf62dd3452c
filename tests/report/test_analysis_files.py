"""Files of an analysis: what they say where a feature is dead, and where only a part of the text is kept."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.feature_results import Settings, feature_results
from sae_sweep.analysis.features import FeatureAnalysis, Subject
from sae_sweep.analysis.firing import Activations
from sae_sweep.config import TopKConfig
from sae_sweep.report.analysis_files import write_analysis
from sae_sweep.saes import build_sae

D_SAE, SEQ, N = 8, 6, 40
DEAD = 7


@pytest.fixture
def analysis() -> FeatureAnalysis:
    """Features that fire at random, of which the last is dead; only half of the codes are held."""
    sae = build_sae(TopKConfig(k=2), 4, D_SAE, seed=0, numerics="modern")
    found = FeatureAnalysis(Subject(sae, 0), SEQ, vocabulary=5)
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(N, SEQ, D_SAE, generator=generator) * (
        torch.rand(N, SEQ, D_SAE, generator=generator) < 0.5
    )
    f[..., DEAD] = 0
    found.codes = Codes(D_SAE, most=int((f != 0).sum()) // 2)
    tokens = torch.randint(5, (N, SEQ), generator=generator)
    found._add_activations(Activations.of(f.flatten(0, 1)), tokens, torch.ones(N, SEQ).bool(), 0)
    return found


def test_position_test_and_partners_are_of_the_tokens_that_are_held(
    analysis: FeatureAnalysis, tmp_path: Path
) -> None:
    results = feature_results("sae", analysis, {}, None, Settings(permutations=3))
    table = pq.read_table(write_analysis(tmp_path, "run", results, list("abcde")).features).to_pydict()
    assert not analysis.codes.complete
    test = results.tests["none"]
    np.testing.assert_array_equal(table["position_share"], test.position_share)
    assert set(table["partner_tokens"]) == {len(analysis.codes.positions)}
    assert table["partner_tokens"][0] < N * SEQ


def test_a_dead_feature_has_no_statistic_except_its_density(
    analysis: FeatureAnalysis, tmp_path: Path
) -> None:
    results = feature_results("sae", analysis, {}, None, Settings(permutations=3))
    table = pq.read_table(write_analysis(tmp_path, "run", results, list("abcde")).features).to_pydict()
    dead = {name: values[DEAD] for name, values in table.items()}
    assert dead["density"] == dead["active"] == 0
    assert all(np.isnan(dead[name]) for name in ("mean", "std", "max", "decile_1", "position_share"))
    assert dead["position_feature"] is dead["top_token"] is None
    assert None not in table["position_feature"][:DEAD]
