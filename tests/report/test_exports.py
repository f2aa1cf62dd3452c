"""Exports for Neuronpedia and Delphi say what the analysis and the codes say."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.feature_results import Settings, feature_results
from sae_sweep.analysis.features import FeatureAnalysis
from sae_sweep.analysis.firing import Activations
from sae_sweep.analysis.logit_effects import LogitEffects
from sae_sweep.config import SaeSweepError
from sae_sweep.report import delphi
from sae_sweep.report.analysis_files import AnalysisFiles, analysis_files, write_analysis
from sae_sweep.report.delphi import Read, write_delphi
from sae_sweep.report.neuronpedia import Source, write_neuronpedia
from tests.report.test_analysis_files import D_SAE, DEAD, SEQ, N, analysis

__all__ = ["analysis"]

STRINGS = [" a", "<b>", "\0", "\u202ed", "\ufffd"]
NEURON = """modelId layer index sourceSetName creatorId createdAt maxActApprox hasVector vector vectorLabel
    vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices
    neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson
    correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1
    neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values
    logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist umap_cluster
    umap_log_feature_sparsity umap_x umap_y"""
ACTIVATION = """id tokens dataIndex index layer modelId dataSource maxValue maxValueTokenIndex minValue values
    dfaValues dfaTargetIndex dfaMaxValue zQIndices zKIndices zValues creatorId createdAt lossValues
    logitContributions binMin binMax binContains qualifyingTokenIndex"""
REQUIRED = {
    "release": "name description creatorName creatorId",
    "model": "id creatorId layers neuronsPerLayer owner",
    "sourceset": "modelId name description creatorName creatorId",
    "source": "id modelId setName creatorId",
}
"""Columns of Neuronpedia's database (`schema.prisma`, August 2026): all, and those that have no default."""
SOURCE = Source("gpt2-pico", 12, 6, "mine", "topk_s1", "docs")


@pytest.fixture
def written(analysis: FeatureAnalysis, tmp_path: Path) -> AnalysisFiles:
    results = feature_results("sae", analysis, {}, None, Settings(permutations=3))
    ids = torch.arange(D_SAE * 2).view(D_SAE, 2) % len(STRINGS)
    effects = LogitEffects(ids, ids.float(), ids, -ids.float())
    return write_analysis(
        tmp_path / "features", "run", dataclasses.replace(results, effects=effects), STRINGS
    )


def lines(file: Path) -> list[dict]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_neuronpedia_gets_every_feature_and_context(written: AnalysisFiles, tmp_path: Path) -> None:
    place = write_neuronpedia(tmp_path, SOURCE, tmp_path / "features", "run")
    assert place == tmp_path / "gpt2-pico" / "6-mine__topk_s1"
    features, contexts = (lines(place / kind / "batch-0.jsonl.gz") for kind in ("features", "activations"))
    table, told = pq.read_table(written.features).to_pydict(), pq.read_table(written.contexts).to_pylist()
    assert [row["frac_nonzero"] for row in features] == table["density"]
    assert features[DEAD]["maxActApprox"] == 0
    assert features[1]["pos_str"] == ["\0", "\u202ed"]
    assert features[1]["neg_values"] == [-2, -3]
    assert set(features[0]) <= set(NEURON.split())
    assert set(contexts[0]) <= set(ACTIVATION.split())
    assert len({row["id"] for row in contexts}) == len(contexts) == len(told)
    top = next(row for row in contexts if row["index"] == "3")
    same = next(row for row in told if row["feature"] == 3 and row["kind"] == "sample" and row["rank"] == 0)
    assert top["tokens"] == [STRINGS[token] for token in same["tokens"]]
    assert top["values"][top["qualifyingTokenIndex"]] == pytest.approx(same["activation"], abs=1e-4)
    for row in contexts:
        if row["binContains"] != -1:
            value = row["values"][row["qualifyingTokenIndex"]]
            assert row["binMin"] - 1e-4 <= value <= row["binMax"] + 1e-4
    for name, columns in REQUIRED.items():
        (row,) = lines(place / f"{name}.jsonl")
        assert set(columns.split()) <= row.keys()
    assert row["num_prompts"] == N
    assert row["num_tokens_in_prompt"] == SEQ


def test_an_export_is_the_same_again_and_refuses_another_run(written: AnalysisFiles, tmp_path: Path) -> None:
    files = _tree(write_neuronpedia(tmp_path, SOURCE, tmp_path / "features", "run"))
    before = [path.read_bytes() for path in files]
    write_neuronpedia(tmp_path, SOURCE, tmp_path / "features", "run")
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(SaeSweepError, match="it is of run run, not other; run task=analyse again"):
        write_neuronpedia(tmp_path, SOURCE, tmp_path / "features", "other")
    analysis_files(tmp_path / "features").contexts.unlink()
    with pytest.raises(SaeSweepError, match=r"contexts\.parquet.*run task=analyse again"):
        write_neuronpedia(tmp_path, SOURCE, tmp_path / "features", "run")


def _tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _codes(f: torch.Tensor, most: int) -> Codes:
    codes = Codes(f.shape[-1], most)
    positions, sequences = torch.arange(SEQ).repeat(N), torch.arange(N).repeat_interleave(SEQ)
    codes.update(Activations.of(f.flatten(0, 1)), positions, sequences)
    return codes


@pytest.mark.parametrize("held", [1.0, 0.5])
def test_delphi_gets_every_activation_of_whole_sequences(
    held: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delphi, "_LATENTS", 3)
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(N, SEQ, D_SAE, generator=generator).sub(0.5).relu()
    tokens = np.arange(N * SEQ).reshape(N, SEQ)
    codes = _codes(f, int(held * (f > 0).sum()))
    read = Read("/models/pico", "blocks.6.hook_resid_pre", "docs")
    write_delphi(tmp_path, read, tokens, codes)
    raw = write_delphi(tmp_path, read, tokens, codes) / read.hook  # the second replaces the first
    assert json.loads((raw / "config.json").read_text())["model_name"] == "/models/pico"
    dense = torch.zeros_like(f)
    for start, end in ((0, 2), (3, 5), (6, 7)):
        part = load_file(raw / f"{start}_{end}.safetensors")
        row, position, feature = torch.from_numpy(part["locations"].astype(np.int64)).T
        dense[row, position, feature + start] = torch.from_numpy(part["activations"])
    whole = len(part["tokens"])
    assert whole == N if held == 1 else N / 3 < whole < N
    np.testing.assert_array_equal(part["tokens"], tokens[:whole])
    assert torch.equal(dense[:whole], f[:whole])
    assert not dense[whole:].any()
    assert len(_tree(raw)) == 4


def test_delphi_gets_nothing_where_no_sequence_fits(tmp_path: Path) -> None:
    codes = _codes(torch.ones(N, SEQ, D_SAE), most=D_SAE)
    with pytest.raises(SaeSweepError, match="the first sequence alone has more activations than are held"):
        write_delphi(tmp_path, Read("m", "h", "t"), np.zeros((N, SEQ), int), codes)
    assert not list(tmp_path.iterdir())
