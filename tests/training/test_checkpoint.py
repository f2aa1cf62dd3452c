"""A checkpoint is read back unchanged, or rejected."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_sweep.config import SaeSweepError
from sae_sweep.store import RunFolder
from sae_sweep.training import discard_checkpoint
from sae_sweep.training.checkpoint import Begun, Checkpoint, begun, load_checkpoint, save_checkpoint
from tests.disks import fill_up

STATE = {
    "weights": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "steps": torch.tensor(7),
    "scalar": torch.tensor(0.25, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
    "empty": torch.empty(0),
    "bf16": torch.ones(2, dtype=torch.bfloat16),
}
HISTORY = {"lines": 5}
POSITION = {"step": 7, "sequences": {"file": "a", "rows": [1, 2]}}


RESOLVED = {"attention": "sdpa", "threads": 2}
MIXED = [{"step": 3, "attention": ["eager", "sdpa"]}]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    save_checkpoint(folder, "the-id", Checkpoint(STATE, POSITION, HISTORY, 1.5, RESOLVED, MIXED))
    return folder


def file(folder: RunFolder) -> Path:
    return folder.checkpoint / "state.safetensors"


def test_what_is_saved_comes_back(folder: RunFolder) -> None:
    found = load_checkpoint(folder, "the-id")
    assert found is not None
    assert found.state.keys() == STATE.keys()
    for name, value in STATE.items():
        assert found.state[name].dtype == value.dtype
        assert torch.equal(found.state[name], value)
    assert found[1:] == (POSITION, HISTORY, 1.5, RESOLVED, MIXED)
    assert [path.name for path in folder.checkpoint.iterdir()] == ["state.safetensors"]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert load_checkpoint(RunFolder(tmp_path / "run"), "the-id") is None
    discard_checkpoint(RunFolder(tmp_path / "run"))


def test_discarding_leaves_nothing(folder: RunFolder) -> None:
    discard_checkpoint(folder)
    assert not folder.checkpoint.exists()


def _flip(content: bytes) -> bytes:
    return content[:-30] + bytes([content[-30] ^ 1]) + content[-29:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-10],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: b"not a checkpoint at all",
        _flip,
    ],
    ids=["cut", "cut in the header", "empty", "another file", "one bit"],
)
def test_a_damaged_one_is_refused_with_a_warning(
    folder: RunFolder, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file(folder).write_bytes(damage(file(folder).read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(folder, "the-id") is None
    assert "is damaged" in caplog.text
    assert "starting this run over" in caplog.text


def test_any_flipped_bit_is_noticed(folder: RunFolder) -> None:
    whole = file(folder).read_bytes()
    for place in range(len(whole)):
        for bit in {place % 8, (place + 5) % 8}:
            file(folder).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert load_checkpoint(folder, "the-id") is None, (place, bit)
            assert begun(folder, "the-id") in (None, Begun(7, RESOLVED, MIXED)), (place, bit)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32","shape":[3,4]', b'"I32","shape":[3,4]'),
        (b'"F32","shape":[3,4]', b'"F32","shape":[4,3]'),
        (b'"weights"', b'"weightz"'),
        (b"the-id", b"teh-id"),
        (b"1.5", b"1.6"),
        (b'\\"rows\\": [1', b'\\"rows\\": [7'),
        (b'\\"lines\\": 5', b'\\"lines\\": 6'),
    ],
)
def test_any_forged_value_is_noticed(folder: RunFolder, old: bytes, new: bytes) -> None:
    whole = file(folder).read_bytes()
    assert whole.count(old) == 1
    file(folder).write_bytes(whole.replace(old, new))
    assert load_checkpoint(folder, "the-id" if b"id" not in new else new.decode()) is None


def test_one_without_a_checksum_is_refused(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    save_file(STATE, file(folder), metadata={"progress": "{}"})
    assert load_checkpoint(folder, "the-id") is None
    assert "not a checkpoint of this version" in caplog.text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_in_its_place_is_damage(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    file(folder).unlink()
    make(file(folder))
    assert begun(folder, "the-id") is None
    assert load_checkpoint(folder, "the-id") is None
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_one_that_cannot_be_opened_is_no_damage(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The run would start over, and its next checkpoint would replace this one."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(SaeSweepError, match=rf"cannot read .*: {os.strerror(number)}; make it readable"):
            load_checkpoint(folder, "the-id")
    assert load_checkpoint(folder, "the-id") is not None


def test_too_little_memory_to_read_one_is_no_damage(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("sae_sweep.training.checkpoint.tensors_checksum", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_checkpoint(folder, "the-id")


def test_one_of_another_run_is_refused(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(folder, "another-id") is None
    assert "belongs to run the-id, not another-id" in caplog.text


def test_a_damaged_one_falls_back_on_the_one_before(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_checkpoint(folder, "the-id")
    assert before is not None
    save_checkpoint(folder, "the-id", before._replace(seconds=before.seconds + 5))
    newest = load_checkpoint(folder, "the-id")
    assert newest is not None
    assert newest.seconds == before.seconds + 5
    file(folder).write_bytes(_flip(file(folder).read_bytes()))
    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(folder, "the-id")
    assert found is not None
    assert found.seconds == before.seconds
    assert "continuing from the previous checkpoint" in caplog.text


def test_a_writer_killed_between_its_two_renames_loses_one_checkpoint(folder: RunFolder) -> None:
    file(folder).rename(folder.checkpoint / "before.safetensors")
    assert load_checkpoint(folder, "the-id") is not None


def test_what_is_not_ours_beside_a_checkpoint_stays(folder: RunFolder) -> None:
    (folder.checkpoint / "state-of-monday.safetensors").write_bytes(b"mine")
    (folder.checkpoint / "plots").mkdir()
    discard_checkpoint(folder)
    assert sorted(path.name for path in folder.checkpoint.iterdir()) == [
        "plots",
        "state-of-monday.safetensors",
    ]


def test_a_linked_folder_of_checkpoints_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state.safetensors").write_bytes(b"mine")
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.checkpoint.symlink_to(elsewhere)
    discard_checkpoint(run)
    assert (elsewhere / "state.safetensors").exists()


def test_a_full_disk_keeps_the_checkpoint_before(small_disk: Path) -> None:
    run = RunFolder(small_disk / "run")
    first = Checkpoint(STATE, POSITION, history=5, seconds=1.5)
    save_checkpoint(run, "the-id", first)
    fill_up(small_disk)
    for _ in range(2):
        with pytest.raises(
            SaeSweepError, match=r"^no disk space left to write .*state\.safetensors: free some"
        ):
            save_checkpoint(run, "the-id", first._replace(seconds=2.5))
        found = load_checkpoint(run, "the-id")
        assert found is not None
        assert found.seconds == 1.5
        assert [path.name for path in run.checkpoint.iterdir()] == ["state.safetensors"]
    fill_up(small_disk, 2**16)
    save_checkpoint(run, "the-id", first._replace(seconds=2.5))
    found = load_checkpoint(run, "the-id")
    assert found is not None
    assert found.seconds == 2.5
