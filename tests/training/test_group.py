"""Groups end to end on the CPU, with real learners and a fake stream."""

import io
import logging
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_sweep import progress
from sae_sweep.config import ArchitectureConfig, SaeSweepError
from sae_sweep.training import Outcome, trainee
from tests.training.fakes import BATCH, FakeSink, FakeStream, make_config, make_member
from tests.training.helpers import ARCHITECTURES, assert_equal_bits, bare_loop, bits, mixed_members, train


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_alone_gives_the_bits_of_a_bare_loop(tmp_path: Path, architecture: ArchitectureConfig) -> None:
    member = make_member(tmp_path, "a", make_config(architecture))
    [outcome] = train([member])
    assert outcome.failed is None
    assert outcome.tokens == 12 * BATCH
    assert_equal_bits(bits(outcome), bare_loop(member.run.config, member.run.run_id))


def test_a_group_gives_each_member_the_bits_it_has_alone(tmp_path: Path) -> None:
    finished: list[str] = []
    members = mixed_members(tmp_path / "group")
    outcomes = train(members, on_finished=lambda o: finished.append(o.member.run.name))
    assert finished == [member.run.name for member in members]
    for outcome in outcomes:
        config = outcome.member.run.config
        assert outcome.tokens == config.steps * BATCH
        assert_equal_bits(bits(outcome), bare_loop(config, outcome.member.run.run_id))


def test_history_has_every_fifth_step_and_the_last_with_epochs(tmp_path: Path) -> None:
    sink = FakeSink()
    train([make_member(tmp_path, "a", make_config(), sink)])
    assert [tokens for tokens, _ in sink.points] == [5 * BATCH, 10 * BATCH, 12 * BATCH]
    assert [values["epochs"] for _, values in sink.points] == [0.05, 0.10, 0.12]
    assert {"loss", "mse", "l0", "dead", "explained_variance", "lr"} <= sink.points[0][1].keys()
    assert sink.points[0][1]["l0"] == 2.0


def test_text_that_ends_early_finishes_the_members_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = make_member(tmp_path, "a", make_config())
    with caplog.at_level(logging.WARNING):
        [outcome] = train([member], length=7)
    assert outcome.failed is None
    assert outcome.tokens == 7 * BATCH
    assert [tokens // BATCH for tokens, _ in member.sink.points] == [5, 7]
    assert "a: the text ended at 224 tokens" in caplog.text


@pytest.mark.parametrize("length", [100, 7])
def test_what_is_done_with_the_first_is_not_time_of_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Seconds exclude the evaluation of other members, also if the text ends first."""
    evaluated = 0.0
    real = time.monotonic
    monkeypatch.setattr(trainee, "time", SimpleNamespace(monotonic=lambda: real() + evaluated))

    def evaluate(outcome: Outcome) -> None:
        nonlocal evaluated
        evaluated += 1e6

    members = [make_member(tmp_path, name, make_config()) for name in "ab"]
    outcomes = train(members, make_stream=partial(FakeStream, length=length), on_finished=evaluate)
    assert [outcome.seconds < 1e6 for outcome in outcomes] == [True, True]


def test_a_last_save_that_fails_is_the_failure_of_its_member_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = trainee.save_checkpoint

    def fails_for_b(folder: Path, *args: object) -> None:
        if folder == b.run.folder:
            raise SaeSweepError("the disk is full")
        save(folder, *args)  # type: ignore[arg-type]

    a, b = (make_member(tmp_path, name, make_config()) for name in "ab")
    monkeypatch.setattr(trainee, "save_checkpoint", fails_for_b)
    outcomes = train([a, b], length=7)
    assert [outcome.failed for outcome in outcomes] == [None, "the disk is full"]


def test_nothing_is_left_on_the_terminal_or_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train([make_member(tmp_path / "out", "a", make_config())])
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    # drawn at every step: otherwise a fast machine finishes before the bar is drawn a second time
    monkeypatch.setattr(progress, "_Bar", partial(progress._Bar, mininterval=0, miniters=1))
    train([make_member(tmp_path, name, make_config(seed=i)) for i, name in enumerate("ab")])
    shown = terminal.getvalue()
    assert "100%" in shown
    assert "384/384" in shown
    assert "loss=" in shown
    assert "L0=2" in shown
    assert "dead=" in shown
