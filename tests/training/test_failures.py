"""Failures of one member or of a group; the other members are unaffected."""

import logging
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep import logs
from sae_sweep.activations.stream import BadActivationsError
from sae_sweep.config import ReLUConfig, SaeSweepError
from sae_sweep.saes import Learner
from sae_sweep.saes.optimizer import Optimizer
from sae_sweep.signals import Interrupted
from sae_sweep.training.readings import Collected, Readings
from tests.training.fakes import BATCH, FakeSink, FakeStream, make_config, make_member
from tests.training.helpers import assert_equal_bits, bare_loop, bits, raise_at, train


def test_a_diverged_member_is_stopped_with_its_step_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    # ReLU without unit norm: the first steps at this rate overflow.
    bad = make_member(tmp_path, "bad", make_config(ReLUConfig(), lr=1e30))
    finished: list[tuple[str, bool]] = []
    ok, failed = train(
        [good, bad],
        on_finished=lambda o: finished.append((o.member.run.name, o.failed is None)),
    )
    assert finished == [("bad", False), ("good", True)]
    assert failed.failed is not None
    assert "loss is" in failed.failed
    assert "at step " in failed.failed
    assert not bad.run.folder.checkpoint.exists()
    assert ok.failed is None
    assert_equal_bits(bits(ok), bare_loop(good.run.config, good.run.run_id))
    assert all(torch.isfinite(torch.tensor(values["loss"])) for _, values in bad.sink.points)


Break = Callable[[pytest.MonkeyPatch], None]


class _BrokenSink(FakeSink):
    """The sink of the run that breaks."""


def _broken_step(patch: pytest.MonkeyPatch) -> None:
    step = Learner.step

    def fail(learner: Learner, x: torch.Tensor) -> Any:
        return [][0] if learner._config.seed == 7 and learner.steps == 6 else step(learner, x)

    patch.setattr(Learner, "step", fail)


def _broken_state(patch: pytest.MonkeyPatch) -> None:
    state = Learner.state

    def fail(learner: Learner) -> Any:
        return [][0] if learner._config.seed == 7 and learner.steps > 6 else state(learner)

    patch.setattr(Learner, "state", fail)


def _broken_scalars(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        _BrokenSink,
        "scalars",
        lambda sink, *point: [][0] if len(sink.points) > 5 else sink.points.append(point),
    )


def _broken_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_BrokenSink, "mark", lambda sink: [][0] if len(sink.points) > 5 else len(sink.points))


@pytest.mark.parametrize("breaks", [_broken_step, _broken_state, _broken_scalars, _broken_mark])
def test_an_exception_of_ours_fails_its_member_alone_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, breaks: Break
) -> None:
    good = make_member(tmp_path, "good", make_config())
    bad = make_member(tmp_path, "bad", make_config(seed=7), _BrokenSink())
    with monkeypatch.context() as patch:
        breaks(patch)
        failed, ok = train([bad, good], checkpoint_every_min=1e-9, log_every=1)
    assert failed.failed is not None
    line = r"IndexError: .* \(traceback in train\.log\); the same command goes on from (\d+) tokens"
    found = re.fullmatch(line, failed.failed)
    assert found, failed.failed
    assert "Traceback (most recent call last)" in caplog.text
    assert ok.failed is None
    assert_equal_bits(bits(ok), bare_loop(good.run.config, good.run.run_id))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        [again] = train([bad])
    assert again.failed is None
    assert f"bad: resumed at {found[1]} tokens" in caplog.text
    assert_equal_bits(bits(again), bare_loop(bad.run.config, bad.run.run_id))


def test_a_traceback_is_in_the_log_of_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = make_member(tmp_path, "bad", make_config(seed=7))
    good = make_member(tmp_path, "good", make_config())
    _broken_step(monkeypatch)
    for member in (bad, good):
        member.run.folder.root.mkdir()
    with logs.log_to_files([(member.run.name, member.run.folder.log) for member in (bad, good)]):
        train([bad, good])
    text = bad.run.folder.log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "IndexError: list index out of range\nin step 7 of bad\n" in text
    assert not good.run.folder.log.exists() or good.run.folder.log.read_text() == ""


def test_a_step_that_torch_cannot_compute_is_no_matter_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(optimizer: Optimizer, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        raise RuntimeError("value cannot be converted to type float without overflow")

    monkeypatch.setattr(Optimizer, "update", fail)
    [outcome] = train([make_member(tmp_path, "a", make_config())])
    assert outcome.failed == (
        "RuntimeError: value cannot be converted to type float without overflow (traceback in train.log)"
    )


def test_a_gradient_that_is_not_finite_asks_for_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(optimizer: Optimizer, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        optimizer._decoder.grad.fill_(torch.inf)  # type: ignore[union-attr]
        raise RuntimeError("value cannot be converted to type float without overflow")

    monkeypatch.setattr(Optimizer, "update", fail)
    [outcome] = train([make_member(tmp_path, "a", make_config())])
    assert outcome.failed == "a gradient is not finite at step 1: lower optimizer.lr"


def test_the_step_named_is_the_first_that_is_not_finite(tmp_path: Path) -> None:
    class Poisoned(FakeStream):
        def __next__(self):
            batch = super().__next__()
            if batch.step == 6:
                batch.activations[1].fill_(float("nan"))
            return batch

    [outcome] = train([make_member(tmp_path, "a", make_config())], make_stream=Poisoned)
    assert outcome.failed is not None
    assert "the loss is nan at step 7 (224 tokens)" in outcome.failed


def test_bad_activations_of_one_layer_fail_its_members_alone(tmp_path: Path) -> None:
    def before(layers: Sequence[int], step: int) -> None:
        if step == 6 and 2 in layers:
            raise BadActivationsError("layer 2, step 6: NaN or inf", layer=2, step=6)

    one = make_member(tmp_path, "one", make_config(layer=1))
    two = make_member(tmp_path, "two", make_config(layer=2))
    ok, failed = train([one, two], before)
    assert failed.failed == "layer 2, step 6: NaN or inf; the same command goes on from 160 tokens"
    assert ok.failed is None
    assert_equal_bits(bits(ok), bare_loop(one.run.config, one.run.run_id))
    assert [tokens // BATCH for tokens, _ in one.sink.points] == [5, 10, 12]


def test_bad_activations_of_a_layer_that_is_through_fail_nobody(tmp_path: Path) -> None:
    def before(layers: Sequence[int], step: int) -> None:
        if step == 9 and 2 in layers:
            raise BadActivationsError("layer 2, step 9: NaN or inf", layer=2, step=9)

    longer = make_member(tmp_path, "longer", make_config(layer=1))
    shorter = make_member(tmp_path, "shorter", make_config(layer=2, steps=5))
    outcomes = train([longer, shorter], before)
    assert [outcome.failed for outcome in outcomes] == [None, None]
    assert_equal_bits(bits(outcomes[0]), bare_loop(longer.run.config, longer.run.run_id))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SaeSweepError("the text\ncannot be read"), "the text; cannot be read"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error (traceback in train.log)"),
        (RuntimeError("a mistake of ours"), "RuntimeError: a mistake of ours (traceback in train.log)"),
        (KeyError(), "KeyError (traceback in train.log)"),
    ],
)
def test_a_stream_that_fails_saves_every_member_first(tmp_path: Path, error: Exception, line: str) -> None:
    members = [make_member(tmp_path, name, make_config(layer=layer)) for name, layer in (("a", 1), ("b", 2))]
    outcomes = train(members, raise_at(7, error))
    assert [o.failed for o in outcomes] == [f"{line}; the same command goes on from 192 tokens"] * 2
    for outcome in train(members):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.run.config, outcome.member.run.run_id))


def test_a_layer_that_fails_has_saved_the_members_of_all_layers(tmp_path: Path) -> None:
    def before(layers: Sequence[int], step: int) -> None:
        if step == 7 and 2 in layers:
            raise BadActivationsError("layer 2, step 7: NaN or inf", layer=2, step=7)
        saved[step] = sorted(path.parts[-3] for path in tmp_path.glob("*/checkpoint/state.safetensors"))

    saved: dict[int, list[str]] = {}
    names = (("one", 1), ("two", 2))
    train([make_member(tmp_path, name, make_config(layer=layer)) for name, layer in names], before)
    assert saved[7] == ["one", "two"]  # where layer 1 goes on alone


def test_a_stream_that_fails_does_not_save_a_member_that_diverged(tmp_path: Path) -> None:
    class Poisoned(FakeStream):
        def __next__(self) -> Any:
            if self.step == 8:
                raise SaeSweepError("the hub is gone")
            batch = super().__next__()
            if batch.step == 6:
                batch.activations[2].fill_(float("nan"))
            return batch

    patient = Readings.collect
    bad = make_member(tmp_path, "bad", make_config(layer=2))
    good = make_member(tmp_path, "good", make_config(layer=1))
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU, where a loss arrives some steps later
        patch.setattr(
            Readings,
            "collect",
            lambda self, wait=False: patient(self, wait=wait) if wait else Collected([], None),
        )
        diverged, cut = train([bad, good], make_stream=Poisoned)
    assert diverged.failed is not None
    assert diverged.failed.startswith("the loss is nan at step 7")
    assert not bad.run.folder.checkpoint.exists()
    assert cut.failed == "the hub is gone; the same command goes on from 224 tokens"


def test_a_stop_that_breaks_the_stream_is_a_stop(tmp_path: Path) -> None:
    """A library may answer a signal with an exception of its own."""

    def before(layers: Sequence[int], step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("a worker was killed")

    member = make_member(tmp_path, "a", make_config())
    with pytest.raises(Interrupted):
        train([member], before)
    [outcome] = train([member])
    assert_equal_bits(bits(outcome), bare_loop(member.run.config, member.run.run_id))


def test_a_stream_that_cannot_be_made_fails_all(tmp_path: Path) -> None:
    def make_stream(layers: Sequence[int]) -> FakeStream:
        raise SaeSweepError("no such text")

    [outcome] = train([make_member(tmp_path, "a", make_config())], make_stream=make_stream)
    assert outcome.failed == "no such text"


def test_text_shorter_than_a_batch_fails(tmp_path: Path) -> None:
    [outcome] = train([make_member(tmp_path, "a", make_config())], length=0)
    assert outcome.failed is not None
    assert "shorter than one batch" in outcome.failed


def test_a_full_disk_fails_its_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, whole: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    [outcome] = train([make_member(tmp_path, "a", make_config())], checkpoint_every_min=1e-9)
    assert outcome.failed is not None
    assert "no disk space left" in outcome.failed
    assert list((tmp_path / "a" / "checkpoint").iterdir()) == []


def test_an_sae_that_cannot_be_built_fails_alone(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    bad = make_member(tmp_path, "bad", make_config())
    bad.run.folder.checkpoint.parent.mkdir(parents=True)
    bad.run.folder.checkpoint.write_text("a file where a folder belongs")
    ok, failed = train([good, bad])
    assert ok.failed is None
    assert failed.failed is not None
    assert "cannot write" in failed.failed
