"""`task=publish` as a command, against a stand-in of the hub."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

import sae_sweep as ss
from sae_sweep.config import ModelConfig, RunConfig, TopKConfig
from sae_sweep.launch.finish import _metadata
from sae_sweep.plan import Plan
from sae_sweep.saes import save_sae
from sae_sweep.store import PlannedRun, set_state, write_metrics
from sae_sweep.tasks.publish import _without_this_machine
from tests.conftest import Cli
from tests.e2e.test_hub import ASSETS
from tests.hub import UPLOADS, Server
from tests.launch.conftest import plan
from tests.saes.helpers import architecture, fresh_sae

__all__ = ["plan"]
pytestmark = pytest.mark.filterwarnings(UPLOADS)


@pytest.fixture
def runs(plan: Plan) -> list[PlannedRun]:
    """Two finished runs of the sweep `mine`; the second is undertrained."""
    plan.save()
    for run, start in zip(plan.runs, (0.02, 0.5), strict=True):
        sae = fresh_sae(architecture("topk"), "modern")
        sae.normalisation = "layer_norm" if start < 0.1 else "centred"
        save_sae(sae, run.folder.sae, metadata=_metadata(run))
        write_metrics(run.folder, run.run_id, {"init_match": start, "l0": 4.0, "alive": 30.0}, {})
        set_state(run, "done", tokens=100)
    return list(plan.runs)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(tmp_path / "hub")
    server.serves(monkeypatch, tmp_path / "cache")
    return server


def test_a_sweep_comes_back_from_the_hub(runs: list[PlannedRun], hub: Server, cli: Cli) -> None:
    with hub:
        result = cli("task=publish", "sweep=mine", "to=hf:me/saes/seeds")
        assert result.code == 0, result.err
        again = ss.load_sae(f"hf:me/saes/seeds/{runs[0].name}")
    assert result.out == f"published 2 SAEs: {hub.url}/me/saes\n"
    assert torch.equal(again.W_dec, ss.load_sae(runs[0].folder.sae).W_dec)
    folder = hub.root / "models/me/saes/seeds" / runs[1].name
    assert json.loads((folder / "metrics.json").read_text())["init_match"] == 0.5
    published = (folder / "cfg.json").read_text()
    assert "host" not in json.loads(published)["metadata"]["provenance"]
    assert json.loads(published)["metadata"]["dataset_path"] == "files"
    _, front, card = (hub.root / "models/me/saes/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == ["gpt2"]
    html = MarkdownIt("commonmark").enable("table").render(card)
    assert html.count("<tr>") == 6
    for how, what in (("layer_norm", "Each token is normalised"), ("centred", "Each token's mean")):
        assert html.count(f"<td>{how}</td>") == 1
        assert f"<code>{how}</code>: {what}" in html
    assert f"<code>seeds/{runs[1].name}</code> *" in html
    assert f"<code>seeds/{runs[0].name}</code> *" not in html
    assert "fine-tuned" not in html
    assert f'ss.load_sae("hf:me/saes/seeds/{runs[0].name}")'.replace('"', "&quot;") in html


def test_the_card_lists_what_was_there_before(
    runs: list[PlannedRun], hub: Server, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = hub.root / "models/me/saes"
    for folder, content in (("odd", '{"metadata": [1]}'), ("lens", '{"metadata": {"model_name": "x"}}')):
        (models / folder).mkdir(parents=True)
        (models / folder / "cfg.json").write_text(content)
    with hub:
        for run in runs:
            result = cli("task=publish", f"sae={run.folder.root}", "to=hf:me/saes")
            assert result.code == 0, result.err
        card = (models / "README.md").read_text()
        assert all(run.name in card for run in runs)
        assert "odd" not in card
        assert "`lens`" not in card
        (models / "README.md").write_text("# my own words")
        hub.serves(monkeypatch, tmp_path / "another cache")  # every state of the stand-in has the same commit
        result = cli("task=publish", f"sae={runs[0].folder.root}", "to=hf:me/saes")
    assert "README.md that sae_sweep did not write: it stays" in result.err
    assert (models / "README.md").read_text() == "# my own words"


def test_a_damaged_sae_is_left_out(runs: list[PlannedRun], hub: Server, cli: Cli) -> None:
    file = runs[0].folder.sae / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with hub:
        result = cli("task=publish", "sweep=mine", "to=hf:me/saes")
    assert result.code == 1
    assert f"{runs[0].name} is left out: {file} is damaged" in result.err
    assert "published 1 SAE: " in result.out
    assert not (hub.root / "models/me/saes" / runs[0].name).exists()


@pytest.mark.parametrize(
    ("path", "said", "base"),
    [
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("bundled:gpt2-pico", "bundled:gpt2-pico", None),
        (str(ASSETS), "gpt2-pico", None),
        ("/home/me/gone/my-model", "my-model", None),
    ],
)
def test_paths_of_this_disk_are_not_published(path: str, said: str, base: str | None) -> None:
    config = replace(RunConfig(architecture=TopKConfig()), model=ModelConfig(path=path))
    cfg = {"d_in": 4, "metadata": {"model_path": path, "provenance": {"host": "mine", "run_id": "x"}}}
    published = _without_this_machine(cfg, config)
    assert published["metadata"]["model_path"] == said
    assert published["metadata"].get("base_model") == base
    assert published["metadata"]["provenance"] == {"run_id": "x"}
    assert published["d_in"] == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("sweep=mine",), "task=publish needs a repository on the Hugging Face Hub: to=hf:USER/REPO"),
        (("sweep=mine", "to=me/saes"), "to=me/saes: name a repository on the hub"),
        (("sae=hf:me/x", "to=hf:me/saes"), "sae=hf:me/x: task=publish takes runs"),
    ],
)
def test_what_is_wrong_is_one_line(
    runs: list[PlannedRun], hub: Server, cli: Cli, words: tuple[str, ...], line: str
) -> None:
    result = cli("task=publish", *words)
    assert result.code in (1, 2)
    assert line in result.err
    assert len(result.err.strip().splitlines()) == 1
