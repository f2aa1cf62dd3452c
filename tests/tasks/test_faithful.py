"""`task=faithful` on artificial sweeps: the SAEs of each text, and what is written of them."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from sae_sweep.analysis.faithfulness import noise
from sae_sweep.config import FaithfulDataset, RunConfig
from sae_sweep.saes import load_sae
from sae_sweep.store import planned_run, write_json
from sae_sweep.store.config_file import write_config
from sae_sweep.store.paths import SweepFolder
from sae_sweep.tasks import faithful as task
from tests.activations.conftest import save_gpt2
from tests.conftest import Cli
from tests.study.helpers import BASE, write_sweep

WIDTH = 24
"""Width of the artificial SAEs."""
TASK = ("task=faithful", "sweep=paper", "tracking=none", "device=cpu")


class Noise:
    """A language model, not loaded, whose residuals depend on the token and on the first one."""

    tokenizer = SimpleNamespace(size=40, bos_id=3)
    device = torch.device("cpu")
    d_model = WIDTH

    def get(self, config: RunConfig) -> "Noise":
        return self

    def residuals(self, tokens: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
        table = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
        return dict.fromkeys(layers, table[tokens] + table[tokens[:, :1]])


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """SAEs of gpt2-pico on two texts, three seeds each; the model sampled the first text."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **keys: None)
    monkeypatch.setattr(task, "NOISE_TOKENS", 512)
    monkeypatch.setattr(task, "Models", Noise)
    folder = SweepFolder(tmp_path / "multirun" / "paper")
    facts = [
        dataclasses.replace(BASE, dictionary=4, seed=seed, dataset=dataset)
        for dataset in ("owt", "tinystories")
        for seed in (1, 2, 3)
    ]
    write_sweep(folder.root, facts)
    plan = json.loads(folder.plan.read_text())
    for entry in plan["runs"]:
        if entry["config"]["dataset"]["name"] == "library_docs":
            made = FaithfulDataset(path="bundled:gpt2-pico")
            entry["config"]["dataset"] = {"kind": "FaithfulDataset", **dataclasses.asdict(made)}
        write_config(folder.run(entry["name"]), planned_run(entry, folder).config)
    write_json(folder.plan, plan)
    return folder


def rows(folder: SweepFolder) -> dict[tuple[str, str], dict[str, str]]:
    with (folder.faithful / "faithful.csv").open(newline="") as file:
        return {(row["text"], row["measure"]): row for row in csv.DictReader(file)}


def ffr(sweep: SweepFolder, runs: list[str]) -> float:
    """Mean share of features above 1 on more than a tenth of 512 random tokens, of which BOS is not read."""
    ids = torch.from_numpy(noise(512, 128, 40, bos=3)).long()
    x = Noise().residuals(ids, [8])[8][:, 1:]
    each = [(load_sae(sweep.run(run).sae).encode(x) > 1).sum((0, 1)) > 51 for run in runs]
    return torch.stack(each).double().mean().item()


def test_every_text_has_sfr_and_ffr_beside_those_of_the_sampled_text(
    cli: Cli, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, float] = {}
    monkeypatch.setattr(task, "track_section", lambda *arguments: sent.update(arguments[-1]))
    names = [entry["name"] for entry in json.loads(sweep.plan.read_text())["runs"]]
    weak = sweep.run(names[3]).metrics
    write_json(weak, {**json.loads(weak.read_text()), "init_match": 0.5})
    result = cli(*TASK)
    assert result.code == 0, result.err
    found = rows(sweep)
    assert {key: row["undertrained"].lower() == "true" for key, row in found.items()} == {
        (text, measure): text == "stdlib_docs"  # one of three is enough
        for text in ("faithful", "stdlib_docs")
        for measure in ("SFR", "FFR")
    }
    for text, runs in (("faithful", names[:3]), ("stdlib_docs", names[3:])):
        assert float(found[text, "FFR"]["value"]) == pytest.approx(ffr(sweep, runs))
    of_trained = {key: row for key, row in found.items() if key[0] == "faithful"}
    assert sent == pytest.approx(
        {f"{name}/faithful": float(row["value"]) for (_, name), row in of_trained.items()}
    )
    for (text, measure), row in found.items():
        assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1
        assert bool(row["sampled_minus_this"]) == (text == "stdlib_docs")
        assert bool(row["seed_low"]) == (measure == "SFR")
    other, own = found["stdlib_docs", "SFR"], found["faithful", "SFR"]
    assert float(other["sampled_minus_this"]) == pytest.approx(float(own["value"]) - float(other["value"]))
    assert "faithful (sampled)" in result.out
    section = json.loads((sweep.faithful / "section.json").read_text())
    assert [len(table["rows"]) for table in section["tables"]] == [2, 2 * 5]
    assert len(section["runs"]) == 6


def test_text_of_another_model_is_none_of_its_own(cli: Cli, sweep: SweepFolder, tmp_path: Path) -> None:
    other = save_gpt2(tmp_path / "other")
    plan = json.loads(sweep.plan.read_text())
    for entry in plan["runs"]:
        if entry["config"]["dataset"]["name"] == "faithful":
            entry["config"]["dataset"]["path"] = str(other)
        write_config(sweep.run(entry["name"]), planned_run(entry, sweep).config)
    write_json(sweep.plan, plan)
    result = cli(*TASK)
    assert result.code == 0, result.err
    assert {row["sampled"].lower() for row in rows(sweep).values()} == {"false"}
    assert not any(row["sampled_minus_this"] for row in rows(sweep).values())


def test_a_damaged_run_is_named_and_left_out(cli: Cli, sweep: SweepFolder) -> None:
    run = json.loads(sweep.plan.read_text())["runs"][0]["name"]
    (sweep.run(run).sae / "sae_weights.safetensors").write_bytes(b"no weights")
    result = cli(*TASK)
    assert result.code == 1
    assert f"{run} is left out: " in result.err
    assert "Traceback" not in result.err
    assert set(rows(sweep)) == {(t, m) for t in ("faithful", "stdlib_docs") for m in ("SFR", "FFR")}


def test_a_single_seed_has_no_sfr_and_is_named(cli: Cli, sweep: SweepFolder) -> None:
    plan = json.loads(sweep.plan.read_text())
    plan["runs"] = plan["runs"][2:]  # one of three seeds of the first text is left
    write_json(sweep.plan, plan)
    result = cli(*TASK)
    assert result.code == 0, result.err
    assert "SFR compares seeds, and there is one of faithful: train others" in result.err
    assert rows(sweep)["faithful", "SFR"]["value"] == ""
    assert float(rows(sweep)["faithful", "FFR"]["value"]) >= 0


def test_a_sweep_without_a_finished_run_is_refused_in_one_line(cli: Cli, sweep: SweepFolder) -> None:
    for entry in json.loads(sweep.plan.read_text())["runs"]:
        status = sweep.run(entry["name"]).status
        write_json(status, {**json.loads(status.read_text()), "state": "pending"})
    result = cli(*TASK)
    assert result.code != 0
    assert "no run is finished, so no SAE can be measured" in result.err
    assert not sweep.faithful.exists()


def test_another_model_in_the_place_of_the_first_is_refused_in_one_line(cli: Cli, sweep: SweepFolder) -> None:
    plan = json.loads(sweep.plan.read_text())
    for entry in plan["runs"]:
        entry["fingerprints"] = {"model": "another"}
    write_json(sweep.plan, plan)
    result = cli(*TASK)
    assert result.code != 0
    assert "was trained on other weights than model.path=bundled:gpt2-pico has now" in result.err
    assert not sweep.faithful.exists()
