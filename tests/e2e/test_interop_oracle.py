"""SAELens, SAEBench, sae-probes and Delphi, each in its own environment, read what this package writes.

    SAEBENCH_PYTHON=... SAEPROBES_PYTHON=... DELPHI_PYTHON=... pytest tests/e2e/test_interop_oracle.py

`make interop` makes the environments. The language model comes from a stand-in of the hub, so nothing is
downloaded; SAEBench's other evaluations need models and data sets of the hub.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import sae_sweep as ss
from sae_sweep.activations import LanguageModel
from sae_sweep.analysis.evaluation import evaluate
from sae_sweep.launch.group import Models
from sae_sweep.store import SweepFolder, planned_run, read_plan
from sae_sweep.text import held_out_sequences, open_text, token_mask
from tests.e2e.test_hub import ASSETS
from tests.hub import TOKEN, Server

PYTHONS = {name: os.environ.get(f"{name.upper()}_PYTHON") for name in ("saebench", "saeprobes", "delphi")} | {
    "saelens": os.environ.get("SAEBENCH_PYTHON")
}
SCRIPT = Path(__file__).with_name("interop_oracle.py")
TRAINED = (
    *("model=gpt2-pico", "dataset=stdlib_docs", "layer=6", "dictionary=4", "architecture=batchtopk", "k=16"),
    *("tokens=60_000", "batch=256", "optimizer.lr=3e-3", "activations.buffer_tokens=4096", "sweep=x"),
    *("evaluation.tokens=2048", "tracking=none", "figures=none", "model.dtype=float32"),
)
READ = ("figures=none", "analysis.tokens=20_000", "analysis.permutations=2", "sweep=x")
SEQUENCES, LENGTH = 64, 128
DATASET = "118_us_state_CA"

pytestmark = [
    pytest.mark.slow(reason="other tools in their own environments, which only `make interop` has"),
    pytest.mark.skipif(not any(PYTHONS.values()), reason="no interpreter of another tool is named"),
]


class Written(NamedTuple):
    """A sweep of one SAE, published on a stand-in of the hub and exported."""

    folder: Path
    run: Path
    hub: Server
    env: dict[str, str]

    def answer(self, tool: str, *arguments: Path | str) -> Path:
        """Run a tool and return the file with its answer; skips where its interpreter is not named."""
        out = self.folder / f"{tool}.out"
        python = PYTHONS[tool]
        if python is None:
            pytest.skip(f"no interpreter with {tool} is named")
        command = [python, "-W", "ignore", str(SCRIPT), tool, *map(str, arguments), str(out)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert out.exists(), done.stderr[-5000:]
        return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("interop")
    model = folder / "hub/models/gpt2"
    shutil.copytree(ASSETS, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "n_ctx": config["n_positions"]}))
    hub = Server(folder / "hub")
    env = {
        **{
            key: value
            for key, value in os.environ.items()
            if key not in ("PYTHONPATH", "COVERAGE_PROCESS_START")
        },
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    ours = {**env, "PYTHONPATH": os.pathsep.join(sys.path)}
    with hub:
        for words in (
            TRAINED,
            ("task=publish", "sweep=x", "to=hf:me/saes"),
            ("task=export", "format=delphi", *READ),
            ("task=analyse", *READ),
        ):
            command = [sys.executable, "-m", "sae_sweep", *words]
            done = subprocess.run(command, cwd=folder, env=ours, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        (run,) = (folder / "multirun/x").glob("gpt2-pico_*")
        yield Written(folder, run, hub, env)


def test_saelens_loads_from_the_hub_what_was_published(written: Written) -> None:
    theirs = load_file(written.answer("saelens", "me/saes", written.run.name))
    ours = load_file(written.run / "sae/sae_weights.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_saebench_measures_what_the_evaluation_measures(written: Written) -> None:
    """Over the same tokens. Its explained variance and its ablation are defined otherwise."""
    sweep = SweepFolder(written.run.parent)
    run = planned_run(read_plan(sweep)["runs"][0], sweep)
    lm: LanguageModel = Models().get(run.config)
    tokens = held_out_sequences(
        open_text(run.config.dataset, written.folder), run.config.packing, lm.tokenizer, SEQUENCES * LENGTH
    )[:SEQUENCES]
    text = written.folder / "sequences"
    text.mkdir()
    (text / "train.jsonl").write_text("".join(json.dumps({"tokens": row.tolist()}) + "\n" for row in tokens))
    # by its relative path, in which the hub's library sees a name, too
    (result,) = json.loads(written.answer("saebench", written.run / "sae", text.name).read_text())
    theirs = {key: value for part in result.values() for key, value in part.items()}
    sae, mask = ss.load_sae(written.run), token_mask(tokens, lm.tokenizer.special_ids, run.config.packing)
    ours = evaluate(sae, lm, tokens, run.config.layer, mask).metrics
    for their_key, our_key in {
        "ce_loss_without_sae": "ce_clean",
        "ce_loss_with_sae": "ce_sae",
        "l0": "l0",
        "l1": "l1",
        "cossim": "cosine_raw",
    }.items():
        assert theirs[their_key] == pytest.approx(ours[our_key], rel=1e-3), their_key
    assert theirs["frac_alive"] == pytest.approx(ours["alive"] / sae.d_sae)
    assert 0 < theirs["explained_variance"] < 1


def test_sae_probes_trains_on_the_features(written: Written) -> None:
    results = json.loads(written.answer("saeprobes", written.run / "sae", DATASET).read_text())
    assert [result["k"] for result in results] == [1, 16]
    for result in results:
        assert len(result["indices"]) == result["k"]
        assert 0 < result["test_auc"] <= 1


def test_delphi_reads_features_and_contexts(written: Written) -> None:
    latents = written.run / "export/delphi/latents"
    found = json.loads(written.answer("delphi", latents).read_text())
    assert len(found) > 100
    features = pq.read_table(written.run / "features/firing.parquet").to_pydict()
    strings = pq.read_table(written.run / "features/tokens.parquet")["string"].to_pylist()
    contexts = pq.read_table(written.run / "features/contexts.parquet").to_pylist()
    tops = {row["feature"]: row for row in contexts if row["kind"] == "top" and row["rank"] == 0}
    for feature, (_, strongest, text) in found.items():
        assert strongest == pytest.approx(features["max"][int(feature)])
        top = tops[int(feature)]
        assert strings[top["tokens"][top["at"]]].strip("\ufffd") in text
