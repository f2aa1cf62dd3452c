"""`task=plan` on the command line: its output, and that it writes nothing."""

import json
import logging
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from sae_sweep.config import ARCHITECTURES, ModelConfig, RunConfig
from sae_sweep.plan import throughput
from sae_sweep.plan.cost import SaeShape
from tests.conftest import Cli

SWEPT = ["task=plan", "dataset=owt,tinystories", "seed=42", "layer=6,8", "plan.tflops=2"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def planned(cli: Cli, *words: str) -> dict:
    result = cli(*words, "format=json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_json_holds_every_run_its_groups_and_the_cost(cli: Cli) -> None:
    document = planned(cli, *SWEPT)
    assert len(document["runs"]) == 4
    first = document["runs"][0]
    assert first["name"] == "gpt2-small_L6_owt_topk_x16_k16_s42"
    assert (first["layer"], first["dataset"], first["architecture"], first["seed"]) == (6, "owt", "topk", 42)
    assert (first["dictionary"], first["d_sae"], first["k"], first["tokens"]) == (16, 12_288, 16, 100_000_000)
    assert first["l0_coefficient"] is None
    assert len(first["id"]) == 12
    assert [group["dataset"] for group in document["groups"]] == ["owt", "tinystories"]
    for group in document["groups"]:
        assert group["layers"] == [6, 8]
        assert group["runs"] == [run["name"] for run in document["runs"] if run["group"] == group["group"]]
    cost = document["cost"]
    assert cost["lm_tokens"] == sum(group["lm_tokens"] for group in document["groups"]) == 2 * 100_787_402
    assert cost["sae_tokens"] == 400_000_000
    assert (cost["throughput"], cost["tflops_sae"], cost["tflops_lm"]) == ("given", 2.0, 2.0)
    assert cost["hours"] == pytest.approx((cost["lm_flops"] + cost["sae_flops"]) / 2e12 / 3600)


def test_what_this_machine_cannot_hold_is_said_without_the_model(cli: Cli) -> None:
    words = [*SWEPT, "dictionary=500_000"]
    document = planned(cli, *words)
    assert document["room"]["memory"] > 2**42 > document["room"]["machine_memory"]
    assert document["room"]["results"] > 2**42 > document["room"]["free_disk"]
    assert [line.split(":")[0] for line in document["lacking"]][:1] == ["dictionary=500000 on gpt2-small"]
    assert "Not here: dictionary=500000 on gpt2-small: an SAE with its optimiser" in cli(*words).out
    refused = cli(*(word for word in words if word != "task=plan"), "tracking=none")
    assert refused.code == 2
    assert refused.err.splitlines()[0].startswith(
        "sae_sweep: dictionary=500000 on gpt2-small: an SAE with its"
    )
    assert not Path("multirun").exists()


def test_text_says_the_same(cli: Cli) -> None:
    document = planned(cli, *SWEPT)
    text = cli(*SWEPT).out
    for run in document["runs"]:
        assert f"{run['name']}  {run['id']}" in text
    for group in document["groups"]:
        assert f"gpt2-small on {group['dataset']}, layers 6, 8; 2 runs, about 101M LM tokens" in text
    assert f"4 runs in 2 LM passes (sweep {document['sweep']}, fuse=true)" in text
    for figure in ("one by one: 403M", "400M", "45.3 PFLOP", "given (plan.tflops)", "hours"):
        assert figure in text


def test_one_by_one_every_run_is_a_pass(cli: Cli) -> None:
    assert "4 runs in 4 LM passes" in cli(*SWEPT, "fuse=false").out


def test_nothing_is_written_and_a_terminal_is_not_overrun(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli(*SWEPT, "optimizer.lr=1e-5", "init.shared=false", "data_seed=123456")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert not any(Path.cwd().iterdir())


def test_an_unknown_width_leaves_names_and_ids_and_says_why(cli: Cli) -> None:
    words = ["task=plan", "model.path=somebody/some-lm", "plan.tflops=2"]
    document = planned(cli, *words)
    (run,) = document["runs"]
    assert run["name"] == "some-lm_L8_owt_topk_x16_k16_s49"
    assert run["d_sae"] is None
    cost = document["cost"]
    assert {key for key, value in cost.items() if value is None} == {
        *("lm_flops", "sae_flops", "cache_bytes", "hours", "tflops_sae", "tflops_lm")
    }
    text = cli(*words).out
    assert run["id"] in text
    assert "some-lm: its width is unknown until it loads" in text


def test_blocks_that_are_guessed_are_said_to_be(cli: Cli, tmp_path: Path) -> None:
    values = {"model_type": "novel", "num_hidden_layers": 9, "hidden_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(values))
    words = ("task=plan", "plan.tflops=2", f"model.path={tmp_path}", "model.name=mine", "k=4")
    assert "mine: its blocks are unknown and assumed to be like GPT-2's" in cli(*words).out


def test_json_is_all_there_is_on_standard_output_when_measured(cli: Cli, text_folder: Path) -> None:
    words = ["task=plan", "model=gpt2-pico", "dataset=files", f"dataset.path={text_folder}", "layer=2"]
    document = planned(cli, *words, "dictionary=4", "batch=128", "device=cpu")
    cost = document["cost"]
    assert cost["throughput"] == "measured"
    assert cost["hours"] > 0
    assert "measured here" in cli(*words, "dictionary=4", "batch=128", "device=cpu").out
    assert not (Path.cwd() / "multirun").exists()


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("numerics", ["modern", "study"])
def test_every_training_step_can_be_timed(kind: str, numerics: str) -> None:
    model = ModelConfig(path="bundled:gpt2-pico")
    config = RunConfig(
        model=model,
        architecture=ARCHITECTURES[kind](),
        dictionary=2,
        batch=64,
        device="cpu",
        numerics=numerics,
    )
    measured = throughput.measure([config], seconds=0.1)
    assert measured.source == "measured"
    assert measured.sae[SaeShape(kind, numerics, 128, 256)] > 0
    assert measured.lm[128] > 0


def test_shapes_there_is_no_time_for_are_as_fast_as_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed: list[SaeShape] = []

    def rate(config: RunConfig, shape: SaeShape, seconds: float) -> float:
        timed.append(shape)
        return 3.0

    monkeypatch.setattr(throughput, "_sae_rate", rate)
    monkeypatch.setattr(throughput, "_lm_rate", lambda config, width: 1.0)
    model = ModelConfig(path="bundled:gpt2-pico")
    configs = [RunConfig(model=model, architecture=ARCHITECTURES["topk"](), dictionary=n) for n in (2, 8, 4)]
    with caplog.at_level(logging.INFO):
        measured = throughput.measure(configs, seconds=0.0)
    assert [shape.d_sae for shape in timed] == [1024]  # the one with most work ahead
    assert set(measured.sae.values()) == {3.0}
    assert len(measured.sae) == 3
    assert "measured 1 of 3 SAE shapes" in caplog.text
