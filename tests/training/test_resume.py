"""Interrupted training resumes to the same weights and history as uninterrupted training."""

import dataclasses
import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sae_sweep.config import TrackingConfig
from sae_sweep.signals import Interrupted
from sae_sweep.store import SweepFolder
from sae_sweep.tracking import open_sink
from sae_sweep.training import Member, Outcome
from sae_sweep.training.trainee import histogram_steps
from tests.training.fakes import BATCH, CONDITIONS, D_IN, make_config, make_member
from tests.training.helpers import (
    PowerCut,
    assert_equal_bits,
    bare_loop,
    bits,
    kill,
    mixed_members,
    raise_at,
    train,
)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_interrupted_and_resumed_gives_the_same_bits_and_the_same_history(
    tmp_path: Path, signum: signal.Signals
) -> None:
    whole = mixed_members(tmp_path / "whole")
    expected = train(whole)
    members = mixed_members(tmp_path / "cut")
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=signum.name) as caught:
        train(members, kill(signum, at=9))
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before
    # The first member was finished, with its last step saved for a later evaluation.
    done = [load_file(m.run.folder.checkpoint / "state.safetensors")["steps"].item() for m in members]
    assert done[0] == 8
    assert set(done[1:]) <= {9, 10}
    for outcome, other in zip(train(members), expected, strict=True):
        assert_equal_bits(bits(outcome), bits(other))
        assert outcome.seconds > 0
    for member, other in zip(members, whole, strict=True):
        assert member.sink.points == other.sink.points


def test_histograms_are_logged_during_training_once_each(tmp_path: Path) -> None:
    whole = mixed_members(tmp_path / "whole")[:2]
    for outcome in train(whole, histograms=2, log_every=2):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.run.config, outcome.member.run.run_id))
    members = mixed_members(tmp_path / "cut")[:2]
    with pytest.raises(Interrupted):
        train(members, kill(signal.SIGTERM, at=7), histograms=2, log_every=2)
    train(members, histograms=2, log_every=2)
    for member, other in zip(members, whole, strict=True):
        assert member.sink.points == other.sink.points
        found = [(tokens, [*values]) for tokens, values in other.sink.points]
        steps = sorted(histogram_steps(member.run.config.steps, 2, 2))
        assert len(steps) == 2
        for name in ("train/log10_density", "train/activations"):
            assert [tokens for tokens, keys in found if name in keys] == [BATCH * step for step in steps]
        counts = [values.get("train/log10_density") for _, values in other.sink.points]
        assert [count for count in counts if count is not None] == [
            2 * D_IN
        ] * 2  # each feature is in one bin


def test_histograms_fall_on_logged_steps_before_the_last() -> None:
    assert sorted(histogram_steps(100, 10, 4)) == [20, 40, 60, 80]
    assert sorted(histogram_steps(100, 50, 4)) == [50]
    assert not histogram_steps(30, 50, 4)
    assert not histogram_steps(100, 10, 0)
    assert all(0 < step < 7 for step in histogram_steps(7, 1, 1000))


def test_members_ahead_of_the_stream_wait(tmp_path: Path) -> None:
    first = make_member(tmp_path, "first", make_config(seed=1))
    with pytest.raises(Interrupted):
        train([first], kill(signal.SIGINT, at=6))
    ahead = load_file(first.run.folder.checkpoint / "state.safetensors")["steps"].item()
    assert 0 < ahead < 12
    second = make_member(tmp_path, "second", make_config(seed=2))
    for outcome in train([first, second]):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.run.config, outcome.member.run.run_id))
    assert len(first.sink.points) == len(second.sink.points) == 3


def test_a_member_ahead_reaches_its_own_longer_budget(tmp_path: Path) -> None:
    long = make_member(tmp_path, "long", make_config(steps=30))
    with pytest.raises(Interrupted):
        train([long], kill(signal.SIGINT, at=20))
    short = make_member(tmp_path, "short", make_config(steps=8))
    outcomes = train([long, short])
    assert [outcome.tokens for outcome in outcomes] == [30 * BATCH, 8 * BATCH]
    assert_equal_bits(bits(outcomes[0]), bare_loop(long.run.config, long.run.run_id))


def test_a_member_that_waits_keeps_its_own_place_when_saved_again(tmp_path: Path) -> None:
    first = make_member(tmp_path, "first", make_config(seed=1, steps=30))
    with pytest.raises(Interrupted):
        train([first], kill(signal.SIGINT, at=20))
    state = (first.run.folder.checkpoint / "state.safetensors").read_bytes()
    second = make_member(tmp_path, "second", make_config(seed=2, steps=30))
    with pytest.raises(Interrupted):
        train([first, second], kill(signal.SIGINT, at=8))
    assert (first.run.folder.checkpoint / "state.safetensors").read_bytes() == state
    for outcome in train([first, second]):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.run.config, outcome.member.run.run_id))


def test_a_request_to_stop_is_obeyed_between_two_evaluations(tmp_path: Path) -> None:
    members = [make_member(tmp_path, name, make_config()) for name in "abc"]
    evaluated: list[str] = []

    def evaluate(outcome: Outcome) -> None:
        evaluated.append(outcome.member.run.name)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(members, on_finished=evaluate)
    assert evaluated == ["a"]
    resumed = train(members[1:])
    assert [outcome.tokens for outcome in resumed] == [12 * BATCH] * 2


def test_a_signal_that_lightning_sees_first_saves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After our last check in this step, Lightning raises its own exception.
    monkeypatch.setattr("sae_sweep.training.callbacks.StopRequest.raise_if_requested", lambda self: None)
    member = make_member(tmp_path, "a", make_config())
    with pytest.raises(Interrupted) as caught:
        train([member], kill(signal.SIGTERM, at=6))
    assert caught.value.signum == signal.SIGTERM
    monkeypatch.undo()
    [outcome] = train([member])
    assert_equal_bits(bits(outcome), bare_loop(member.run.config, member.run.run_id))


def test_checkpoints_are_written_as_time_goes_by(tmp_path: Path) -> None:
    config = make_config()
    member = make_member(tmp_path, "a", config)
    seen: list[int] = []

    def before(layers: Sequence[int], step: int) -> None:
        path = member.run.folder.checkpoint / "state.safetensors"
        seen.append(load_file(path)["steps"].item() if path.exists() else 0)
        if step == 9:
            raise PowerCut

    with pytest.raises(PowerCut):
        train([member], before, checkpoint_every_min=1e-9)
    assert seen[0] == 0
    assert seen[-1] >= 8
    [outcome] = train([member])
    assert_equal_bits(bits(outcome), bare_loop(config, member.run.run_id))
    assert [tokens // BATCH for tokens, _ in member.sink.points] == [5, 10, 12]


def test_a_checkpoint_of_another_size_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = make_member(tmp_path, "a", make_config())
    with pytest.raises(Interrupted):
        train([member], kill(signal.SIGINT, at=6))
    wider = member._replace(run=dataclasses.replace(member.run, config=make_config(dictionary=4)))
    with caplog.at_level(logging.WARNING):
        [outcome] = train([wider])
    assert "starting it over" in caplog.text
    assert outcome.tokens == 12 * BATCH
    assert [tokens // BATCH for tokens, _ in member.sink.points] == [5, 10, 12]


def test_history_and_resume_with_the_real_sink(tmp_path: Path) -> None:
    def member(root: Path) -> Member:
        made = make_member(root, "a", make_config())
        tracking = TrackingConfig(backend="none")
        return made._replace(sink=open_sink(made.run, tracking, SweepFolder(root), CONDITIONS))

    def lines(root: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (root / "a" / "history.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in found]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train([member(whole)], log_every=2)
    with pytest.raises(PowerCut):
        train([member(cut)], raise_at(9, PowerCut()), log_every=2)
    assert len(lines(cut)) >= 4
    with pytest.raises(Interrupted):
        train([member(cut)], kill(signal.SIGINT, at=5), log_every=2)
    train([member(cut)], log_every=2)
    assert lines(cut) == lines(whole)
    assert [line["tokens"] // BATCH for line in lines(whole)] == [2, 4, 6, 8, 10, 12]
