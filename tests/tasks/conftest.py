"""Fixtures of the whole-sweep tests: a small text folder, and a sweep of SAEs that nobody trained."""

from pathlib import Path

import pytest
import torch

from sae_sweep.activations import load_language_model
from sae_sweep.analysis import evaluate
from sae_sweep.config import EvaluationConfig, FilesDataset, ModelConfig, RunConfig, TopKConfig
from sae_sweep.saes import build_sae, load_sae, save_sae
from sae_sweep.store import PlannedRun, SweepFolder, set_state, write_json, write_metrics
from sae_sweep.text import fingerprint, held_out_sequences, open_text, token_mask
from tests.e2e.conftest import text_folder, without_figures

__all__ = ["text_folder", "without_figures"]


def write_untrained(folder: SweepFolder, name: str, config: RunConfig) -> PlannedRun:
    """Write a finished run with the SAE that its seed draws."""
    contents = {"corpus": fingerprint(config.dataset, folder.root)}
    run = PlannedRun(name, f"id-{name}", "", config, folder.run(name), contents)
    sae = build_sae(config.architecture, 128, 128, seed=config.seed, numerics="modern")
    save_sae(sae, run.folder.sae, metadata={"provenance": {"run_id": run.run_id}})
    write_metrics(run.folder, run.run_id, {"init_match": 0.02, "explained_variance": 0.5}, {})
    set_state(run, "done", tokens=config.tokens)
    return run


def alone(run: PlannedRun, text: PlannedRun) -> dict[str, float]:
    """The SAE of a run evaluated on the text of another, with nothing shared or kept."""
    lm = load_language_model(run.config.model, torch.device("cpu"))
    source = open_text(text.config.dataset, Path())
    packing = run.config.packing
    tokens = held_out_sequences(source, packing, lm.tokenizer, run.config.evaluation.tokens)
    mask = token_mask(tokens, lm.tokenizer.special_ids, packing)
    return evaluate(load_sae(run.folder.sae), lm, tokens, run.config.layer, mask).metrics


@pytest.fixture
def two_texts(tmp_path: Path) -> list[PlannedRun]:
    """A sweep `mine` of two finished SAEs on the bundled model, each of its own text: prose and code."""
    sentences = {
        "prose": "The old library stood by the river. ",
        "code": "def area(self, x):\n    return x\n",
    }
    folder, runs = SweepFolder(tmp_path / "multirun" / "mine"), []
    for name, sentence in sentences.items():
        text = tmp_path / name
        text.mkdir()
        for number in range(60):
            (text / f"{number:02}.txt").write_text(f"{number} {name} " + sentence * (3 + number % 5))
        config = RunConfig(
            model=ModelConfig("bundled:gpt2-pico", dtype="float32"),
            dataset=FilesDataset(name=name, path=str(text), held_out_every=2),
            architecture=TopKConfig(k=4),
            evaluation=EvaluationConfig(tokens=512),
            layer=2,
            dictionary=1,
            tokens=4096,
            device="cpu",
        )
        runs.append(write_untrained(folder, name, config))
    write_json(folder.plan, {"sweep": "mine", "runs": [run.record() for run in runs]})
    return runs
