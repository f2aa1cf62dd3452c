"""Listing, verifying and removing cached streams, without disturbing a writer."""

from pathlib import Path

import pytest

from sae_sweep.activations.cache import CacheFolder, inventory, prune, remove, verify
from sae_sweep.config import SaeSweepError
from sae_sweep.store import Lease
from tests.activations.cache.conftest import Bench, flip_byte
from tests.activations.cache.test_reader import assert_same
from tests.activations.test_stream import next_batches


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
    assert prune(found) == size
    assert inventory(bench.root)[0].state == "unfinished"
    assert_same(next_batches(bench.fill(1, 2, steps=12), 12), next_batches(bench.stream([1, 2]), 12))
    assert bench.files().items() > others.items()
    assert inventory(bench.root)[0].state == "complete"
    assert verify(inventory(bench.root)[0]) == []


def test_a_folder_without_a_manifest_is_rubbish(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "activations" / "abc")
    folder.root.mkdir(parents=True)
    (folder.root / "shard-000000_tokens.safetensors").write_bytes(b"1234")
    (found,) = inventory(tmp_path)
    assert found.problem is not None
    assert "has no manifest" in found.problem
    assert (prune(found) or 0) >= 4
    assert inventory(tmp_path) == []


def test_a_name_may_be_shortened_but_not_ambiguous(tmp_path: Path) -> None:
    for name in ("abc1", "abd2"):
        (tmp_path / "activations" / name).mkdir(parents=True)
    assert inventory(tmp_path, "abc")[0].folder.name == "abc1"
    with pytest.raises(SaeSweepError, match=r"stream=ab: not one of the streams in .*: abc1, abd2"):
        inventory(tmp_path, "ab")
