"""W&B offline runs, written for real and read back."""

import dataclasses
import json
import logging
import platform
from pathlib import Path

import pytest

from sae_sweep.config import CommandConfig
from sae_sweep.store import SweepFolder
from sae_sweep.tracking import open_comparison_sink
from tests.tracking.conftest import OpenSink
from tests.tracking.offline import offline_runs
from tests.training.fakes import CONDITIONS

# The smallest PNG there is: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


def test_a_run_can_be_read_back(
    tmp_path: Path,
    open_one: OpenSink,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sae = tmp_path / "run" / "sae"
    sae.mkdir(parents=True)
    (sae / "cfg.json").write_text("{}")
    (sae / "sae_weights.safetensors").write_bytes(b"weights")
    figure = tmp_path / "run" / "features" / "activations.png"
    figure.parent.mkdir()
    figure.write_bytes(PNG)
    with caplog.at_level(logging.INFO):
        sink = open_one()
        sink.rewind(None)
        for tokens in (100, 200, 300):
            sink.scalars(tokens, {"loss": 1 / tokens, "l0": 16.0})
        sink.histogram("activations", [3, 0, 5], [-10.0, -5.0, -1.0, 0.0])
        sink.image("activations", figure)
        sink.summary({"eval/explained_variance": 0.75})
        sink.artifact("run", sae)
        sink.finish(failed=False)
    assert capfd.readouterr() == ("", "")
    assert caplog.text.count("wandb sync") == 1
    assert f"{tmp_path}/wandb/offline-run-*" in caplog.text

    [run] = offline_runs(tmp_path)
    assert (run.run.display_name, run.run.run_group, run.run.job_type) == ("run", tmp_path.name, "train")
    assert run.run.project == "sae_sweep"
    assert run.config["run"]["seed"] == 42
    assert run.config["run"]["architecture"]["kind"] == "topk"
    assert run.config["provenance"]["run_id"] == "id-run"
    assert run.config["provenance"]["corpus"] == "abc"
    assert run.config["provenance"]["versions"]["python"] == platform.python_version()
    assert not {"launcher", "tracking"} & run.config["run"].keys()
    assert run.step_metrics["*"] == "tokens"
    assert run.points("train/loss") == [(100, 0.01), (200, 0.005), (300, 1 / 300)]
    [bins] = [row for row in run.history if "features/activations.bins" in row]
    assert bins["features/activations.values"] == [3, 0, 5]
    assert bins["features/activations.bins"] == [-10, -5, -1, 0]
    assert run.keys() == {
        "tokens": {"number": [100, 200, 300]},
        "train/loss": {"number": [100, 200, 300]},
        "train/l0": {"number": [100, 200, 300]},
        "features/activations": {"histogram": [300]},
        "figures/activations": {"image-file": [300]},
        "eval/explained_variance": {"number": [300]},
    }
    assert run.summary["eval/explained_variance"] == 0.75
    assert run.system
    [artifact] = run.artifacts
    assert (artifact.type, artifact.name) == ("model", "run")
    names = {entry.path for entry in artifact.manifest.contents}
    assert names == {"cfg.json", "sae_weights.safetensors"}
    # read where they lie: W&B would copy every SAE below the home folder
    assert {Path(entry.local_path).parent for entry in artifact.manifest.contents} == {sae}
    assert not [path for path in (tmp_path / "wandb-data").rglob("*") if path.is_file()]
    assert run.exit_code == 0


def test_a_resumed_run_has_each_point_once(tmp_path: Path, open_one: OpenSink) -> None:
    first = open_one()
    first.rewind(None)
    for tokens in (100, 200):
        first.scalars(tokens, {"loss": 1.0})
    mark = first.mark()
    for tokens in (300, 400):
        first.scalars(tokens, {"loss": 1.0})
    first.finish(failed=True)

    second = open_one()
    second.rewind(mark)
    for tokens in (300, 400, 500):
        second.scalars(tokens, {"loss": 2.0})
    second.finish(failed=False)

    [run] = offline_runs(tmp_path)
    expected = [(100, 1.0), (200, 1.0), (300, 2.0), (400, 2.0), (500, 2.0)]
    assert run.points("train/loss") == expected
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [(line["tokens"], line["loss"]) for line in map(json.loads, history)] == expected


def test_a_run_that_goes_on_with_other_numerics_says_so(tmp_path: Path, open_one: OpenSink) -> None:
    change = {"step": 7, "attention": ["sdpa", "eager"]}
    for mixed in ((), (change,)):
        sink = open_one(conditions=dataclasses.replace(CONDITIONS, mixed=mixed))
        sink.rewind(None)
        sink.finish(failed=False)
        [run] = offline_runs(tmp_path)
        assert run.config["provenance"]["mixed"] == list(mixed)
        assert run.config["provenance"]["resolved"]["attention"] == "sdpa"


def test_runs_of_one_process_are_kept_apart(tmp_path: Path, open_one: OpenSink) -> None:
    sinks = {name: open_one(name) for name in ("a", "b")}
    for tokens in (1, 2):
        for name, sink in sinks.items():
            sink.scalars(tokens, {name: float(tokens)})
    sinks["a"].finish(failed=False)
    sinks["b"].finish(failed=True)
    runs = {run.run.display_name: run for run in offline_runs(tmp_path)}
    assert runs["a"].points("train/a") == runs["b"].points("train/b") == [(1, 1.0), (2, 2.0)]
    assert runs["a"].points("train/b") == []
    assert (runs["a"].exit_code, runs["b"].exit_code) == (0, 1)
    assert runs["a"].run.run_id != runs["b"].run.run_id


def test_the_comparison_of_a_sweep_is_a_run_of_its_own(tmp_path: Path) -> None:
    figure = tmp_path / "matrix.png"
    figure.write_bytes(PNG)
    page = tmp_path / "matrix.html"
    page.write_text("<p>é</p>", encoding="utf-8")
    for attempt in (1, 2):
        swept = [{"seed": 1, "optimizer.lr": 0.1}, {"seed": 2, "optimizer.lr": 0.1}]
        sink = open_comparison_sink(
            SweepFolder(tmp_path), CommandConfig(sweep="x", experiment="e"), ["a", "b"], swept=swept
        )
        sink.table("matching/pairs", ["run", "ratio"], [["a", 0.25], ["b", None]])
        sink.image("matching/matrix", figure)
        sink.html("matching/heat_map", page)
        sink.histogram("matching/cosines", [attempt, 2], [0.0, 0.5, 1.0])
        sink.summary({"matched/seed": 0.5})
        sink.finish()
    [run] = offline_runs(tmp_path)
    assert run.run.job_type == "comparison"
    assert (run.name, list(run.run.tags)) == ("comparison", ["comparison", "e"])
    assert run.config["runs"] == ["a", "b"]
    assert (run.config["seed"], run.config["optimizer/lr"]) == ([1, 2], [0.1])
    assert run.config["command"]["sweep"] == "x"
    assert run.run.run_group == run.config["sweep_name"] == tmp_path.name
    assert {key: [*kinds] for key, kinds in run.keys().items()} == {
        "tokens": ["number"],
        "matching/pairs": ["table-file"],
        "matching/matrix": ["image-file"],
        "matching/heat_map": ["html-file"],
        "matching/cosines": ["histogram"],
        "matched/seed": ["number"],
    }
    [path] = [row["matching/pairs.path"] for row in run.history if "matching/pairs.path" in row]
    [table] = (tmp_path / "wandb").glob(f"offline-run-*/files/{path}")
    found = json.loads(table.read_text())
    assert (found["columns"], found["data"]) == (["run", "ratio"], [["a", 0.25], ["b", None]])
    assert run.summary["matched/seed"] == 0.5
