"""Groups end to end on the CPU: real learners, a stream that is a pure function of its step."""

import dataclasses
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from sae_sweep.activations.stream import BadActivationsError
from sae_sweep.config import (
    ArchitectureConfig,
    BatchTopKConfig,
    Config,
    JumpReLUConfig,
    LauncherConfig,
    ReLUConfig,
    SaeSweepError,
    TopKConfig,
    TrackingConfig,
)
from sae_sweep.saes import Learner, build_sae, init_seed
from sae_sweep.storage import RunFolder
from sae_sweep.tracking import RunSink, open_sink
from sae_sweep.training import Interrupted, Member, Outcome, callbacks, train_group
from tests.training.fakes import BATCH, D_IN, FakeSink, FakeStream, make_config, make_member, residuals

ARCHITECTURES = [
    TopKConfig(k=2),
    BatchTopKConfig(k=2),
    JumpReLUConfig(),
    JumpReLUConfig(initial_threshold=2.0),
    ReLUConfig(),
]

Before = Callable[[Sequence[int], int], None]


def train(members: Sequence[Member], before: Before | None = None, **stream: int) -> list[Outcome]:
    keys = {"before": before} if before else {}
    return train_group(members, lambda layers: FakeStream(layers, **stream, **keys), d_in=D_IN)


def bits(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.sae is not None
    return {name: value.clone() for name, value in outcome.sae.state_dict().items()}


def assert_equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def bare_loop(config: Config, run_id: str) -> dict[str, torch.Tensor]:
    seed = init_seed(config, run_id)
    sae = build_sae(config.architecture, D_IN, 2 * D_IN, seed=seed, numerics=config.numerics)
    learner = Learner(sae, config, "cpu")
    for step in range(config.steps):
        learner.step(residuals(config.layer, step))
    return sae.state_dict()


def kill(signum: int, at: int) -> Before:
    def before(layers: Sequence[int], step: int) -> None:
        del layers
        if step == at:
            os.kill(os.getpid(), signum)

    return before


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_alone_gives_the_bits_of_a_bare_loop(tmp_path: Path, architecture: ArchitectureConfig) -> None:
    member = make_member(tmp_path, "a", make_config(architecture))
    [outcome] = train([member])
    assert outcome.failed is None
    assert outcome.tokens == 12 * BATCH
    assert_equal_bits(bits(outcome), bare_loop(member.config, member.run_id))


def raise_at(at: int, error: Exception) -> Before:
    def before(layers: Sequence[int], step: int) -> None:
        del layers
        if step == at:
            raise error

    return before


def mixed_members(root: Path) -> list[Member]:
    """All architectures, two layers, a budget for each."""
    return [
        make_member(root, f"m{i}", make_config(architecture, steps=8 + 3 * i, layer=1 + i % 2, seed=i))
        for i, architecture in enumerate(ARCHITECTURES)
    ]


def test_a_group_gives_each_member_the_bits_it_has_alone(tmp_path: Path) -> None:
    finished: list[str] = []
    members = mixed_members(tmp_path / "group")
    outcomes = train_group(
        members, FakeStream, d_in=D_IN, on_finished=lambda o: finished.append(o.member.name)
    )
    assert finished == [member.name for member in members]
    for outcome in outcomes:
        config = outcome.member.config
        assert outcome.tokens == config.steps * BATCH
        assert_equal_bits(bits(outcome), bare_loop(config, outcome.member.run_id))


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
    # The first member was through, with its last step on disk for an evaluation that comes later.
    done = [load_file(m.folder.checkpoint / "state.safetensors")["steps"].item() for m in members]
    assert done[0] == 8
    assert set(done[1:]) <= {9, 10}
    for outcome, other in zip(train(members), expected, strict=True):
        assert_equal_bits(bits(outcome), bits(other))
        assert outcome.seconds > 0
    for member, other in zip(members, whole, strict=True):
        assert member.sink.points == other.sink.points


def test_history_has_every_fifth_step_and_the_last_with_epochs(tmp_path: Path) -> None:
    sink = FakeSink()
    train([make_member(tmp_path, "a", make_config(), sink)])
    assert [tokens for tokens, _ in sink.points] == [5 * BATCH, 10 * BATCH, 12 * BATCH]
    assert [values["epochs"] for _, values in sink.points] == [0.05, 0.10, 0.12]
    assert {"loss", "mse", "l0", "dead", "explained_variance", "lr"} <= sink.points[0][1].keys()
    assert sink.points[0][1]["l0"] == 2.0


def test_members_ahead_of_the_stream_wait(tmp_path: Path) -> None:
    first = make_member(tmp_path, "first", make_config(seed=1))
    with pytest.raises(Interrupted):
        train([first], kill(signal.SIGINT, at=6))
    ahead = load_file(first.folder.checkpoint / "state.safetensors")["steps"].item()
    assert 0 < ahead < 12
    second = make_member(tmp_path, "second", make_config(seed=2))
    for outcome in train([first, second]):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.config, outcome.member.run_id))
    assert len(first.sink.points) == len(second.sink.points) == 3


def test_a_member_ahead_reaches_its_own_longer_budget(tmp_path: Path) -> None:
    long = make_member(tmp_path, "long", make_config(steps=30))
    with pytest.raises(Interrupted):
        train([long], kill(signal.SIGINT, at=20))
    short = make_member(tmp_path, "short", make_config(steps=8))
    outcomes = train([long, short])
    assert [outcome.tokens for outcome in outcomes] == [30 * BATCH, 8 * BATCH]
    assert_equal_bits(bits(outcomes[0]), bare_loop(long.config, long.run_id))


def test_a_request_to_stop_is_obeyed_between_two_evaluations(tmp_path: Path) -> None:
    members = [make_member(tmp_path, name, make_config()) for name in "abc"]
    evaluated: list[str] = []

    def evaluate(outcome: Outcome) -> None:
        evaluated.append(outcome.member.name)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_group(members, FakeStream, d_in=D_IN, on_finished=evaluate)
    assert evaluated == ["a"]
    resumed = train(members[1:])
    assert [outcome.tokens for outcome in resumed] == [12 * BATCH] * 2


def test_a_member_that_waits_keeps_its_own_place_when_saved_again(tmp_path: Path) -> None:
    first = make_member(tmp_path, "first", make_config(seed=1, steps=30))
    with pytest.raises(Interrupted):
        train([first], kill(signal.SIGINT, at=20))
    state = (first.folder.checkpoint / "state.safetensors").read_bytes()
    second = make_member(tmp_path, "second", make_config(seed=2, steps=30))
    with pytest.raises(Interrupted):
        train([first, second], kill(signal.SIGINT, at=8))
    assert (first.folder.checkpoint / "state.safetensors").read_bytes() == state
    for outcome in train([first, second]):
        assert_equal_bits(bits(outcome), bare_loop(outcome.member.config, outcome.member.run_id))


def test_checkpoints_are_written_as_time_goes_by(tmp_path: Path) -> None:
    config = make_config(launcher=LauncherConfig(checkpoint_every_min=1e-9))
    member = make_member(tmp_path, "a", config)
    seen: list[int] = []

    def before(layers: Sequence[int], step: int) -> None:
        path = member.folder.checkpoint / "state.safetensors"
        seen.append(load_file(path)["steps"].item() if path.exists() else 0)
        if step == 9:
            raise OSError("the machine goes down")

    with pytest.raises(OSError, match="goes down"):
        train([member], before)
    assert seen[0] == 0
    assert seen[-1] >= 8
    [outcome] = train([member])
    assert_equal_bits(bits(outcome), bare_loop(config, member.run_id))
    assert [tokens // BATCH for tokens, _ in member.sink.points] == [5, 10, 12]


def test_a_diverged_member_is_stopped_with_its_step_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    # ReLU without a unit norm in its way: the first steps at this rate overflow.
    bad = make_member(tmp_path, "bad", make_config(ReLUConfig(), lr=1e30))
    finished: list[tuple[str, bool]] = []
    ok, failed = train_group(
        [good, bad],
        FakeStream,
        d_in=D_IN,
        on_finished=lambda o: finished.append((o.member.name, o.failed is None)),
    )
    assert finished == [("bad", False), ("good", True)]
    assert failed.failed is not None
    assert "loss is" in failed.failed
    assert "at step " in failed.failed
    assert not bad.folder.checkpoint.exists()
    assert ok.failed is None
    assert_equal_bits(bits(ok), bare_loop(good.config, good.run_id))
    assert all(torch.isfinite(torch.tensor(values["loss"])) for _, values in bad.sink.points)


def test_a_step_that_torch_cannot_compute_fails_its_member_alone(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    bad = make_member(tmp_path, "bad", make_config(lr=1e38, backend="reference"))  # Adam's step overflows
    outcomes = train([bad, good])
    assert outcomes[0].failed is not None
    assert outcomes[0].failed.startswith("step ")
    assert "could not be computed: value cannot be converted" in outcomes[0].failed
    assert outcomes[1].failed is None
    assert outcomes[1].tokens == 12 * BATCH
    assert not bad.folder.checkpoint.exists()


def test_the_step_named_is_the_first_that_is_not_finite(tmp_path: Path) -> None:
    class Poisoned(FakeStream):
        def __next__(self):
            batch = super().__next__()
            if batch.step == 6:
                batch.activations[1].fill_(float("nan"))
            return batch

    [outcome] = train_group([make_member(tmp_path, "a", make_config())], Poisoned, d_in=D_IN)
    assert outcome.failed is not None
    assert "the loss is nan at step 7 (224 tokens)" in outcome.failed


def test_bad_activations_of_one_layer_fail_its_members_alone(tmp_path: Path) -> None:
    def before(layers: Sequence[int], step: int) -> None:
        if step == 6 and 2 in layers:
            raise BadActivationsError("layer 2, step 6: NaN or inf", layer=2, step=6)

    one = make_member(tmp_path, "one", make_config(layer=1))
    two = make_member(tmp_path, "two", make_config(layer=2))
    ok, failed = train([one, two], before)
    assert failed.failed == "layer 2, step 6: NaN or inf"
    assert ok.failed is None
    assert_equal_bits(bits(ok), bare_loop(one.config, one.run_id))
    assert [tokens // BATCH for tokens, _ in one.sink.points] == [5, 10, 12]


def test_bad_activations_of_a_layer_that_is_through_fail_nobody(tmp_path: Path) -> None:
    def before(layers: Sequence[int], step: int) -> None:
        if step == 9 and 2 in layers:
            raise BadActivationsError("layer 2, step 9: NaN or inf", layer=2, step=9)

    longer = make_member(tmp_path, "longer", make_config(layer=1))
    shorter = make_member(tmp_path, "shorter", make_config(layer=2, steps=5))
    outcomes = train([longer, shorter], before)
    assert [outcome.failed for outcome in outcomes] == [None, None]
    assert_equal_bits(bits(outcomes[0]), bare_loop(longer.config, longer.run_id))


def test_an_error_of_the_stream_fails_all_with_its_line(tmp_path: Path) -> None:
    members = [make_member(tmp_path, name, make_config()) for name in "ab"]
    before = raise_at(3, SaeSweepError("the text cannot be read"))
    assert [o.failed for o in train(members, before)] == ["the text cannot be read"] * 2


def test_a_stream_that_cannot_be_made_fails_all(tmp_path: Path) -> None:
    def make_stream(layers: Sequence[int]) -> FakeStream:
        raise SaeSweepError("no such text")

    [outcome] = train_group([make_member(tmp_path, "a", make_config())], make_stream, d_in=D_IN)
    assert outcome.failed == "no such text"


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


def test_text_shorter_than_a_batch_fails(tmp_path: Path) -> None:
    [outcome] = train([make_member(tmp_path, "a", make_config())], length=0)
    assert outcome.failed is not None
    assert "shorter than one batch" in outcome.failed


def test_a_full_disk_fails_the_group_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, whole: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_sweep.training.checkpoint._write", full)
    config = make_config(launcher=LauncherConfig(checkpoint_every_min=1e-9))
    [outcome] = train([make_member(tmp_path, "a", config)])
    assert outcome.failed is not None
    assert "no disk space left" in outcome.failed
    assert list((tmp_path / "a" / "checkpoint").iterdir()) == []


def test_a_checkpoint_of_another_size_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = make_member(tmp_path, "a", make_config())
    with pytest.raises(Interrupted):
        train([member], kill(signal.SIGINT, at=6))
    wider = dataclasses.replace(member, config=make_config(dictionary=4))
    with caplog.at_level(logging.WARNING):
        [outcome] = train([wider])
    assert "starting it over" in caplog.text
    assert outcome.tokens == 12 * BATCH
    assert [tokens // BATCH for tokens, _ in member.sink.points] == [5, 10, 12]


def test_an_sae_that_cannot_be_built_fails_alone(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    bad = make_member(tmp_path, "bad", make_config())
    bad.folder.checkpoint.parent.mkdir(parents=True)
    bad.folder.checkpoint.write_text("a file where a folder belongs")
    ok, failed = train([good, bad])
    assert ok.failed is None
    assert failed.failed is not None
    assert "cannot write" in failed.failed


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
    # drawn at every step: otherwise a fast machine is through before the bar is drawn a second time
    monkeypatch.setattr(callbacks, "tqdm", partial(tqdm, mininterval=0, miniters=1))
    train([make_member(tmp_path, name, make_config(seed=i)) for i, name in enumerate("ab")])
    shown = terminal.getvalue()
    assert "100%" in shown
    assert "384/384" in shown
    assert "loss=" in shown
    assert "L0=2" in shown
    assert "dead=" in shown


def test_a_signal_that_lightning_sees_first_saves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the last look of ours in this step, Lightning raises an exception of its own.
    monkeypatch.setattr("sae_sweep.training.callbacks.StopRequest.obey", lambda self: None)
    member = make_member(tmp_path, "a", make_config())
    with pytest.raises(Interrupted) as caught:
        train([member], kill(signal.SIGTERM, at=6))
    assert caught.value.signum == signal.SIGTERM
    monkeypatch.undo()
    [outcome] = train([member])
    assert_equal_bits(bits(outcome), bare_loop(member.config, member.run_id))


def test_history_and_resume_with_the_real_sink(tmp_path: Path) -> None:
    def open_one(root: Path) -> RunSink:
        config = make_config(tracking=TrackingConfig(backend="none", log_every=2))
        folder = RunFolder(root / "a")
        keys = {"run_id": "id-a", "name": "a", "sweep": "s", "wandb_folder": root, "provenance": {}}
        return open_sink(config, folder=folder, **keys)

    def lines(root: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (root / "a" / "history.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in found]

    config = make_config(tracking=TrackingConfig(log_every=2))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train([make_member(whole, "a", config, open_one(whole))])
    with pytest.raises(OSError, match="power"):
        train([make_member(cut, "a", config, open_one(cut))], raise_at(9, OSError("power")))
    assert len(lines(cut)) >= 4
    with pytest.raises(Interrupted):
        train([make_member(cut, "a", config, open_one(cut))], kill(signal.SIGINT, at=5))
    train([make_member(cut, "a", config, open_one(cut))])
    assert lines(cut) == lines(whole)
    assert [line["tokens"] // BATCH for line in lines(whole)] == [2, 4, 6, 8, 10, 12]
