"""Failures of one member or of a group; the other members are unaffected."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sae_sweep.activations.stream import BadActivationsError
from sae_sweep.config import ReLUConfig, SaeSweepError
from tests.training.fakes import BATCH, FakeStream, make_config, make_member
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


def test_a_step_that_torch_cannot_compute_fails_its_member_alone(tmp_path: Path) -> None:
    good = make_member(tmp_path, "good", make_config())
    bad = make_member(tmp_path, "bad", make_config(lr=1e38, backend="reference"))  # Adam's step overflows
    outcomes = train([bad, good])
    assert outcomes[0].failed is not None
    assert outcomes[0].failed.startswith("step ")
    assert "could not be computed: value cannot be converted" in outcomes[0].failed
    assert outcomes[1].failed is None
    assert outcomes[1].tokens == 12 * BATCH
    assert not bad.run.folder.checkpoint.exists()


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
    assert failed.failed == "layer 2, step 6: NaN or inf"
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


def test_an_error_of_the_stream_fails_all_with_its_line(tmp_path: Path) -> None:
    members = [make_member(tmp_path, name, make_config()) for name in "ab"]
    before = raise_at(3, SaeSweepError("the text cannot be read"))
    assert [o.failed for o in train(members, before)] == ["the text cannot be read"] * 2


def test_a_stream_that_cannot_be_made_fails_all(tmp_path: Path) -> None:
    def make_stream(layers: Sequence[int]) -> FakeStream:
        raise SaeSweepError("no such text")

    [outcome] = train([make_member(tmp_path, "a", make_config())], make_stream=make_stream)
    assert outcome.failed == "no such text"


def test_text_shorter_than_a_batch_fails(tmp_path: Path) -> None:
    [outcome] = train([make_member(tmp_path, "a", make_config())], length=0)
    assert outcome.failed is not None
    assert "shorter than one batch" in outcome.failed


def test_a_full_disk_fails_the_group_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, whole: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_sweep.training.checkpoint._write", full)
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
