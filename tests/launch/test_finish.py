"""Evaluations of a group: what they share, and what happens when one fails."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from sae_sweep.activations import load_language_model
from sae_sweep.config import (
    EvaluationConfig,
    FilesDataset,
    InitConfig,
    ModelConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.launch.finish import Evaluator, Finisher
from sae_sweep.saes import SAE, build_sae, save_sae
from sae_sweep.signals import Interrupted
from sae_sweep.store import PlannedRun, faults, read_status
from sae_sweep.training import GroupTooLargeError, Outcome
from tests.activations.conftest import save_gpt2
from tests.training.fakes import FakeSink, make_config, make_member


def test_residuals_are_kept_of_one_layer_at_a_time(tmp_path: Path) -> None:
    model = ModelConfig(path=str(save_gpt2(tmp_path)), dtype="float32")
    evaluator = Evaluator(load_language_model(model, torch.device("cpu")), None)  # type: ignore[arg-type]
    tokens = np.random.default_rng(0).integers(1, 200, (6, 16), dtype=np.int32)
    evaluator._held_out[EvaluationConfig().tokens] = tokens, tokens > 5
    sae = build_sae(TopKConfig(k=2), 16, 32, seed=0, numerics="modern")

    def evaluated(layer: int) -> dict[str, float]:
        dataset = FilesDataset(name="files", path="texts")
        return evaluator.evaluate(
            sae, RunConfig(architecture=TopKConfig(k=2), dataset=dataset, layer=layer)
        ).metrics

    def kept() -> dict[int, bool]:
        return {layer: known.residuals is not None for (layer, _), known in evaluator._baselines.items()}

    first = evaluated(1)
    assert kept() == {1: True}
    evaluated(2)
    assert kept() == {1: False, 2: True}
    assert evaluated(1) == first
    found = evaluator._baselines[2, EvaluationConfig().tokens]
    assert found.residuals is not None
    norms = found.residuals[torch.from_numpy(tokens > 5)].norm(dim=-1)
    assert found.mean_norm == pytest.approx(norms.mean().item())
    with torch.no_grad():
        sae.b_dec.fill_(1.0)
    sae.normalise_by("expected_average_only_in")  # and no batch yet
    evaluated(2)
    torch.testing.assert_close(sae.b_dec.detach(), torch.full((16,), found.mean_norm / 4))


def test_the_sae_that_runs_are_fine_tuned_from_is_evaluated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    general = build_sae(TopKConfig(k=2), 8, 16, seed=0, numerics="modern")
    save_sae(general, tmp_path / "general", metadata={})
    evaluated: list[SAE] = []

    def evaluate(_: Evaluator, sae: SAE, config: RunConfig) -> Any:
        evaluated.append(sae)
        return Mock(metrics={"l0": float(config.evaluation.tokens)})

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    evaluator = Evaluator(Mock(d_model=8), Mock())
    config = make_config(init=InitConfig(sae=str(tmp_path / "general")))
    assert evaluator.evaluate_start(config) == evaluator.evaluate_start(replace(config, data_seed=3))
    assert len(evaluated) == 1
    torch.testing.assert_close(evaluated[0].W_dec, general.W_dec)
    longer = replace(config, evaluation=EvaluationConfig(tokens=7))
    assert evaluator.evaluate_start(longer) == {"l0": 7}
    (tmp_path / "general" / "cfg.json").unlink()
    with pytest.raises(SaeSweepError, match="no SAE in"):
        evaluator.evaluate_start(replace(config, layer=2))


class _Sink(FakeSink):
    def __init__(self) -> None:
        super().__init__()
        self.closed: list[bool] = []

    def finish(self, *, failed: bool) -> None:
        self.closed.append(failed)


def _finished(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, together: bool
) -> tuple[PlannedRun, _Sink]:
    """Finish a trained run whose evaluation ends with an error."""

    def evaluate(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(Finisher, "_write_results", evaluate)
    sink = _Sink()
    member = make_member(root, "a", make_config(), sink)
    finisher = Finisher(None, None, 0.7, together=together)  # type: ignore[arg-type]
    finisher.finish(Outcome(member, sae=None, failed=None, seconds=1.0, tokens=5), {})
    return member.run, sink


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SaeSweepError("the disk\nis full"), "the disk; is full"),
        (
            IndexError("list index out of range"),
            "IndexError: list index out of range (traceback in train.log)",
        ),
        (MemoryError("std::bad_alloc"), "memory ran out (std::bad_alloc): lower evaluation.tokens"),
    ],
)
def test_an_evaluation_that_fails_says_that_the_run_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    run, sink = _finished(tmp_path, monkeypatch, error, together=False)
    status = read_status(run.folder)
    assert status.state == "failed"
    assert status.error == f"{line}; it is trained, and the same command evaluates it again"
    assert sink.closed == [True]


def test_what_auto_became_is_in_the_status_also_if_the_file_was_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = _finished(tmp_path, monkeypatch, SaeSweepError("x"), together=False)
    resolved = make_member(tmp_path, "b", make_config(), _Sink()).conditions.resolved.as_dict()
    assert resolved
    assert read_status(run.folder).resolved == resolved


def test_memory_that_runs_out_in_an_evaluation_halves_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GroupTooLargeError, match="bad_alloc"):
        _finished(tmp_path, monkeypatch, MemoryError("std::bad_alloc"), together=True)
    assert not (tmp_path / "a" / "status.json").exists()


@pytest.mark.parametrize("stop", [Interrupted(signal.SIGTERM), KeyboardInterrupt()])
def test_a_stop_in_an_evaluation_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    with pytest.raises(type(stop)):
        _finished(tmp_path, monkeypatch, stop, together=False)
    assert not (tmp_path / "a" / "status.json").exists()


def test_a_status_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = SaeSweepError("no disk space left to write status.json")
    monkeypatch.setattr(faults, "set_state", Mock(side_effect=full))
    _, sink = _finished(tmp_path, monkeypatch, SaeSweepError("the text is gone"), together=False)
    assert "a: the text is gone" in caplog.text
    assert "a: cannot record that it is failed: no disk space left" in caplog.text
    assert sink.closed == [True]
