"""Listing, verifying and removing cached streams, without disturbing a writer."""

import errno
import os
from pathlib import Path

import pytest

from sae_sweep.activations.cache import inventory, prune, remove, verify
from sae_sweep.config import CommandConfig, PathsConfig, SaeSweepError
from sae_sweep.plan import Request
from sae_sweep.store import Lease
from sae_sweep.store.partial import partial_path
from sae_sweep.tasks.cache import cache as carry_out
from tests.activations.cache.conftest import Bench, flip_byte
from tests.activations.cache.test_reader import assert_same
from tests.activations.test_stream import next_batches
from tests.conftest import Cli


def test_a_stream_that_is_being_filled_is_left_alone(bench: Bench) -> None:
    bench.fill(1, steps=6)
    (found,) = inventory(bench.root)
    assert found.state == "complete"
    with Lease(bench.folder.root).if_free():
        assert found.state.startswith("being filled by process")
        assert prune(found) is None
        with pytest.raises(SaeSweepError, match=r"is being filled by process .*: wait for it, or stop it"):
            remove(found)
    assert len(next_batches(bench.open(1), 6)) == 6


@pytest.mark.parametrize("part", ["tokens", "layer-01"])
def test_what_prune_takes_is_computed_again(bench: Bench, part: str) -> None:
    bench.fill(1, 2, steps=12)
    (file,) = bench.folder.root.glob(f"shard-000001_{part}*")
    others = {name: at for name, at in bench.files().items() if name != file.name}
    flip_byte(file)
    (found,) = inventory(bench.root)
    assert [problem.path for problem in verify(found)] == [file]
    size = file.stat().st_size
    assert prune(found) == (size, ())
    assert inventory(bench.root)[0].state == "unfinished"
    assert_same(next_batches(bench.fill(1, 2, steps=12), 12), next_batches(bench.stream([1, 2]), 12))
    assert bench.files().items() > others.items()
    assert inventory(bench.root)[0].state == "complete"
    assert verify(inventory(bench.root)[0]) == []


ID, SHARD = "0123456789ab", "shard-000000_tokens.safetensors"


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("manifest", [None, "", "{", '{"version": "0.1"}'])
def test_a_stream_without_a_readable_manifest_is_rubbish(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "activations" / ID
    folder.mkdir(parents=True)
    (folder / SHARD).write_bytes(b"1234")
    partial_path(folder / SHARD).write_bytes(b"12")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    (found,) = inventory(tmp_path)
    assert found.state == "unusable"
    assert "`task=cache action=prune` removes it" in (found.problem or "") or manifest is not None
    removed = prune(found)
    assert removed is not None
    assert removed == (6 + len(manifest or ""), ())
    assert inventory(tmp_path) == []
    assert tree(tmp_path) == {"activations"}


STRANGERS = [
    ("my_project", {"manifest.json": "{}", "thesis.txt": "years of work"}),
    ("my_project", {SHARD: "mine", "manifest.json": "{"}),
    (ID, {"thesis.txt": "years of work"}),
    (ID, {"manifest.json": "{}", "thesis.txt": "years of work"}),
    (ID, {"manifest.json": '{"name": "a browser extension"}'}),
    (ID, {"manifest.json": '{"version": "1.0"', "thesis.txt": "years of work"}),
    (ID, {"shard-0_tokens.safetensors": "mine", "manifest.json": ""}),
    (ID, {}),
]


def act(cache: Path, action: str, stream: str | None = None) -> int:
    """Carry out `task=cache`."""
    command = CommandConfig("cache", action=action, stream=stream, paths=PathsConfig(cache=str(cache)))
    return carry_out(Request(command, []))


@pytest.mark.parametrize(("name", "files"), STRANGERS)
def test_a_strangers_folder_is_no_stream(tmp_path: Path, name: str, files: dict[str, str]) -> None:
    folder = tmp_path / "activations" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    before = tree(tmp_path)
    assert inventory(tmp_path) == []
    assert [act(tmp_path, action) for action in ("prune", "list", "verify")] == [0, 0, 0]
    for action in ("prune", "remove"):
        with pytest.raises(SaeSweepError, match=rf"^stream={name}: not one of the streams in .*: none$"):
            act(tmp_path, action, name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("how", ["prune", "remove", "remove damaged", "prune damaged"])
def test_what_is_not_ours_in_a_stream_stays_and_is_named(
    capsys: pytest.CaptureFixture[str], bench: Bench, tmp_path: Path, how: str
) -> None:
    bench.fill(1, steps=6)
    root = bench.folder.root
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / SHARD).write_text("mine")
    (root / "notes.txt").write_text("mine")
    (root / ".hidden").write_text("mine")
    (root / "plots").mkdir()
    (root / "plots" / SHARD).write_text("mine")
    (root / "link").symlink_to(outside)
    (root / "shard-000099_tokens.safetensors").symlink_to(outside / SHARD)
    (root.parent / "fedcba987654").symlink_to(outside)
    theirs = {"notes.txt", ".hidden", "plots", f"plots/{SHARD}", "link", "shard-000099_tokens.safetensors"}
    ours = tree(root) - theirs
    if "damaged" in how:
        (root / "manifest.json").write_text("{")
    assert act(bench.root, how.split()[0], bench.folder.name) == 0
    kept = "kept, for it is not ours: .hidden, link, notes.txt, plots, shard-000099_tokens.safetensors"
    assert kept in capsys.readouterr().out
    assert tree(root) == (theirs | ours if how == "prune" else theirs)
    assert tree(outside) == {SHARD}
    assert (root.parent / "fedcba987654").is_symlink()


def test_an_empty_name_is_no_stream(cli: Cli) -> None:
    result = cli("task=cache", "action=remove", "stream=")
    assert (result.code, result.err) == (2, "sae_sweep: stream= is empty: it must be a plain name\n")


def test_a_file_that_cannot_be_removed_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (ID, "fedcba987654"):
        (tmp_path / "activations" / name).mkdir(parents=True)
        (tmp_path / "activations" / name / SHARD).write_text("1")
    unlink = os.unlink

    def refuse(path: os.PathLike[str], **keys: object) -> None:
        if ID in os.fspath(path) and Path(path).name == SHARD:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    assert act(tmp_path, "prune") == 1
    shown = capsys.readouterr().out
    assert f"{ID}: cannot write {tmp_path}/activations/{ID}: Permission denied; make it writable" in shown
    assert "fedcba987654: freed" in shown


def test_a_cache_that_is_a_file_or_missing_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "activations").touch()
    assert inventory(tmp_path) == []
    assert inventory(tmp_path / "nowhere") == []


def test_a_name_may_be_shortened_but_not_ambiguous(tmp_path: Path) -> None:
    for name in ("abc000000001", "abd000000002"):
        (tmp_path / "activations" / name).mkdir(parents=True)
        (tmp_path / "activations" / name / SHARD).touch()
    assert inventory(tmp_path, "abc")[0].folder.name == "abc000000001"
    with pytest.raises(
        SaeSweepError, match=r"stream=ab: not one of the streams in .*: abc000000001, abd000000002"
    ):
        inventory(tmp_path, "ab")
