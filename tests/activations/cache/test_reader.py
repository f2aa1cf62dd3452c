"""Reading the cache: batches equal the stream's, and damaged files are refused."""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from sae_sweep.activations import ActivationBatch, LanguageModel
from sae_sweep.activations.cache import CachedStream, DamagedShardError, shards
from sae_sweep.activations.cache.manifest import FileRecord, Manifest, load_manifest, save_manifest
from sae_sweep.config import SaeSweepError, digest
from tests.activations.cache.conftest import Bench, flip_byte
from tests.activations.test_stream import DAMAGES, next_after, next_batches


def assert_same(cached: list[ActivationBatch], streamed: list[ActivationBatch]) -> None:
    assert len(cached) == len(streamed)
    for ours, theirs in zip(cached, streamed, strict=True):
        assert ours.step == theirs.step
        assert torch.equal(ours.tokens, theirs.tokens)
        assert ours.activations.keys() == theirs.activations.keys()
        for layer, rows in ours.activations.items():
            assert rows.dtype == torch.float32
            assert torch.equal(rows, theirs.activations[layer])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_cache_gives_the_stream_to_the_bit(bench: Bench, dtype: str) -> None:
    bench.with_activations(dtype=dtype)
    cached, stream = bench.fill(0, 2, steps=20), bench.stream([0, 2])
    for _ in range(20):
        assert cached.position() == stream.position()
        assert_same([next(cached)], [next(stream)])
        assert cached.position() == stream.position()
        assert cached.epochs == stream.epochs


def test_rows_know_their_tokens(bench: Bench) -> None:
    for batch in next_batches(bench.fill(0, steps=12), 12):
        assert batch.tokens.shape == (32,)
        assert not (batch.tokens == 0).any()  # special tokens are masked
        embedded = {}
        for token, row in zip(batch.tokens.tolist(), batch.activations[0], strict=True):
            embedded.setdefault(token, []).append(row)
        # rows of the same token differ only by the embedding of their position, one of 15
        assert all(len({tuple(row.tolist()) for row in rows}) <= 15 for rows in embedded.values())


@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 20))
def test_a_run_resumes_from_either(
    lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory, step: int
) -> None:
    bench = Bench(lm, tmp_path_factory.mktemp("cache"))
    cached, stream = bench.fill(1, steps=26), bench.stream([1])
    next_batches(cached, step)
    next_batches(stream, step)
    from_cache = json.loads(json.dumps(cached.position()))
    from_stream = json.loads(json.dumps(stream.position()))
    assert from_cache == from_stream
    expected = next_batches(bench.open(1), 26)[step:]
    other_cached, other_stream = bench.open(1), bench.stream([1])
    other_cached.restore(from_stream)
    other_stream.restore(from_cache)
    assert_same(next_batches(other_cached, 26 - step), expected)
    assert_same(next_batches(other_stream, 26 - step), expected)


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_position_of_no_stream_is_one_clear_error(bench: Bench, damage: dict[str, Any]) -> None:
    cached = bench.fill(1, steps=8)
    with pytest.raises(SaeSweepError, match=r"position is not one of|lies elsewhere"):
        next_after(cached, {**cached.position(), **damage})


def test_a_text_that_stops_ends_the_cache_too(lm: LanguageModel, tmp_path: Path) -> None:
    bench = Bench(lm, tmp_path, exhausted="stop")
    streamed = list(bench.stream([1]))
    cached = bench.fill(1, steps=1000)
    assert_same(list(cached), streamed)
    at_end = cached.position()
    cached.restore(at_end)
    assert list(cached) == []
    passes = len(bench.computed)
    bench.fill(1, steps=2000)
    assert len(bench.computed) == passes


def test_bad_activations_stop_their_layer_at_the_step_of_the_stream(bench: Bench) -> None:
    bench.with_activations(dtype="float16")
    bench.lm = _Spoiled(bench.lm, after=7)  # type: ignore[assignment]
    stream, streamed = bench.stream([1, 2]), []
    with pytest.raises(SaeSweepError) as of_stream:
        streamed.extend(batch for batch in stream)
    bench.lm.passes = 0  # type: ignore[attr-defined]
    cached, read = bench.fill(1, 2, steps=20), []
    with pytest.raises(SaeSweepError, match="overflows float16") as of_cache:
        read.extend(batch for batch in cached)
    assert str(of_cache.value) == str(of_stream.value)
    assert vars(of_cache.value) == vars(of_stream.value)
    assert_same(read, streamed)
    assert len(next_batches(bench.open(1), 20)) == 20  # the other layer continues


class _Spoiled:
    """A language model whose layer 2 overflows float16 in one sequence of forward pass number `after`."""

    def __init__(self, lm: LanguageModel, after: int) -> None:
        self._lm, self._after, self.passes = lm, after, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._lm, name)

    def residuals(self, tokens: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
        found = self._lm.residuals(tokens, layers)
        self.passes += 1
        if self.passes == self._after and 2 in found:
            found[2] = found[2].clone()
            found[2][0] = 1e6
        return found


@pytest.mark.parametrize("part", ["layer-02", "tokens"])
def test_a_flipped_byte_is_never_trained_on(bench: Bench, part: str) -> None:
    bench.fill(1, 2, steps=20)
    (file,) = bench.folder.root.glob(f"shard-000001_{part}*")
    flip_byte(file)
    cached, passed = bench.open(1, 2), []
    with pytest.raises(DamagedShardError) as caught:
        passed.extend(batch for batch in cached)
    assert str(caught.value).startswith(
        f"{file} is damaged (its checksum differs): `task=cache action=verify`"
    )
    assert caught.value.layer == (2 if part == "layer-02" else None)
    assert_same(passed, next_batches(bench.stream([1, 2]), len(passed)))
    assert 0 < len(passed) < 10
    if part == "layer-02":
        rest = bench.open(1)
        rest.restore(cached.position())
        assert_same(next_batches(rest, 5), next_batches(bench.stream([1]), len(passed) + 5)[len(passed) :])


def test_short_and_missing_files_are_named(bench: Bench) -> None:
    bench.fill(1, steps=10)
    (file,) = bench.folder.root.glob("shard-000000_layer-01*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match=r"layer-01.* is damaged \(.* bytes instead of .*\)"):
        next(bench.open(1))
    file.unlink()
    with pytest.raises(DamagedShardError, match=r"layer-01.* is missing"):
        next(bench.open(1))


def test_another_version_is_refused(bench: Bench) -> None:
    bench.fill(1, steps=10)
    plain = json.loads(bench.folder.manifest.read_text())
    bench.folder.manifest.write_text(json.dumps({**plain, "version": "0.9"}))
    for use in (lambda: bench.open(1), lambda: bench.fill(1, steps=10)):
        with pytest.raises(SaeSweepError, match=r"version '0\.9', .*action=prune. removes it, or delete"):
            use()


FORGED = [
    ("d_in", 0),
    ("d_in", "16"),
    ("batch", 10**30),
    ("batch", 1.5),
    ("surprise", 1),
    ("shards", None),
    ("shards", [[]]),
    ("bad", []),
    ("bad", {"1": {"step": -1, "problem": "x"}}),
    ("wanted", {"one": 1}),
    ("wanted", {"1": True}),
    ("following", []),
    ("following", {"step": 1e9}),
    ("following", {"step": 3}),
    ("shards.0.number", 1),
    ("shards.0.steps", 10**9),
    ("shards.0.steps", -1),
    ("shards.0.first_step", "0"),
    ("shards.0.position", None),
    ("shards.0.files.1.file", "../../secret.safetensors"),
    ("shards.0.files.1.bytes", -1),
    ("shards.0.files", {"x": {"file": "x", "bytes": 1, "checksum": "x"}}),
]


@pytest.mark.parametrize(("key", "value"), FORGED, ids=str)
def test_a_manifest_with_absurd_values_is_refused(filled: Bench, key: str, value: object) -> None:
    content = json.loads(filled.folder.manifest.read_text())
    del content["checksum"]
    place = content
    *path, last = key.split(".")
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    filled.folder.manifest.write_text(json.dumps({**content, "checksum": digest(content)}))
    with pytest.raises(SaeSweepError, match=r"manifest\.json is damaged \(.*\): `task=cache action=prune`"):
        filled.open(1)


def test_any_damage_of_a_manifest_is_noticed(filled: Bench) -> None:
    file = filled.folder.manifest
    whole, before = file.read_bytes(), load_manifest(filled.folder)
    for place in range(0, len(whole), 7):
        for damaged in (
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :],
            whole[:place],
        ):
            file.write_bytes(damaged)
            assert _loaded(filled) in (None, before)
    for damaged in (b"[" * 100_000, b"NaN", b"\xff" * 99, b'{"version": ' + whole):
        file.write_bytes(damaged)
        assert _loaded(filled) is None


def _loaded(bench: Bench) -> Manifest | None:
    try:
        return load_manifest(bench.folder)
    except SaeSweepError:
        return None


@pytest.fixture(scope="module")
def cached_once(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(lm, tmp_path_factory.mktemp("cache"))
    bench.fill(1, steps=8)
    return bench


@pytest.fixture
def filled(cached_once: Bench) -> Iterator[Bench]:
    """A cache of 8 steps of layer 1, whose manifest may be damaged."""
    whole = cached_once.folder.manifest.read_bytes()
    yield cached_once
    cached_once.folder.manifest.write_bytes(whole)


def test_a_damaged_manifest_is_refused(bench: Bench) -> None:
    bench.fill(1, steps=10)
    text = bench.folder.manifest.read_text()
    bench.folder.manifest.write_text(text.replace('"first_step": 0', '"first_step": 1'))
    with pytest.raises(SaeSweepError, match=r"manifest\.json is damaged"):
        bench.open(1)


def test_what_is_not_cached_is_named(bench: Bench) -> None:
    with pytest.raises(SaeSweepError, match="no activations are cached there"):
        bench.open(1)
    short = bench.fill(1, steps=5)
    with pytest.raises(SaeSweepError, match=r"ends at step \d+, and step \d+ is needed"):
        list(short)
    far = bench.stream([1])
    next_batches(far, 30)
    with pytest.raises(SaeSweepError, match="and step 30 is needed"):
        bench.open(1).restore(far.position())
    with pytest.raises(SaeSweepError, match="2 is not cached from step 0 on"):
        next(bench.open(2))
    moved = short.position()
    with pytest.raises(SaeSweepError, match="lies elsewhere in the text"):
        bench.open(1).restore({**moved, "buffer": 0, "sequences": {"units": 7}})


def test_an_interrupted_read_leaves_nothing_behind(bench: Bench) -> None:
    """The reader's thread ends when its stream is deleted."""
    cached: CachedStream | None = bench.fill(1, steps=10)
    assert cached is not None
    next(cached)
    thread = next(iter(cached._reader._threads))
    cached = None
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_batches_are_views_of_the_file_and_leave_it_as_it_is(bench: Bench) -> None:
    first, second = next_batches(bench.fill(1, steps=10), 2)
    rows = first.activations[1]
    assert rows.untyped_storage().data_ptr() == second.activations[1].untyped_storage().data_ptr()
    assert rows.data_ptr() % shards.ALIGNMENT == first.tokens.data_ptr() % shards.ALIGNMENT == 0
    rows.zero_()  # training never does this; it changes a private copy of the page
    assert_same(next_batches(bench.open(1), 10), next_batches(bench.stream([1]), 10))


def test_views_outlive_the_stream_and_its_files(bench: Bench) -> None:
    cached: CachedStream | None = bench.fill(1, steps=10)
    assert cached is not None
    batches = next_batches(cached, 10)
    cached = None
    for file in bench.folder.root.glob("*.safetensors"):
        file.unlink()
    assert_same(batches, next_batches(bench.stream([1]), 10))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_any_alignment_are_read(bench: Bench, dtype: str) -> None:
    """safetensors writes the data right after the header, whatever its length."""
    bench.with_activations(dtype=dtype)
    bench.fill(1, steps=10)
    manifest = load_manifest(bench.folder)
    assert manifest is not None
    found = []
    for shard in manifest.shards:
        files = {part: _resaved(bench.folder.root, record) for part, record in shard.files.items()}
        found.append(replace(shard, files=files))
    save_manifest(bench.folder, replace(manifest, shards=tuple(found)))
    batches = next_batches(bench.open(1), 10)
    assert_same(batches, next_batches(bench.stream([1]), 10))
    assert all(batch.activations[1].data_ptr() % shards.ALIGNMENT == 0 for batch in batches)


def _resaved(root: Path, record: FileRecord) -> FileRecord:
    path = root / record.file
    save_file(load_file(path), path)
    whole = path.read_bytes()
    assert (8 + int.from_bytes(whole[:8], "little")) % shards.ALIGNMENT
    return FileRecord(record.file, len(whole), xxh3_128(whole).hexdigest())


def _tells_of_bad_pages() -> bool:
    page = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    return shards._madvise(page.data_ptr(), page.numel(), shards._POPULATE_READ) == 0


@pytest.mark.skipif(not _tells_of_bad_pages(), reason="needs Linux 5.14")
def test_a_page_that_cannot_be_read_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a failing disk: the file is truncated after it is mapped, so its pages are gone."""
    bench.fill(1, steps=10)
    real = mmap.mmap

    def cut_short(descriptor: int, length: int, access: int) -> mmap.mmap:
        mapped = real(descriptor, length, access=access)
        os.truncate(f"/proc/self/fd/{descriptor}", 0)
        return mapped

    monkeypatch.setattr(mmap, "mmap", cut_short)
    with pytest.raises(DamagedShardError, match=r"layer-01.* cannot be read \(Input/output error\)"):
        next(bench.open(1))


class _TwoSets:
    """Two sets of ordinary memory, in place of pinned memory."""

    def __init__(self) -> None:
        self.sets: list[dict[str, torch.Tensor]] = [{}, {}]
        self.turns = 0

    def next_set(self) -> "_Set":
        self.turns += 1
        return _Set(self.sets[self.turns % 2])


class _Set(NamedTuple):
    buffers: dict[str, torch.Tensor]

    def buffer(self, part: str, size: int) -> torch.Tensor:
        return self.buffers.setdefault(part, torch.empty(2 * size, dtype=torch.uint8))[: size + 1]


def test_memory_that_is_used_again_is_not_in_use(bench: Bench) -> None:
    """Like on a GPU, where batches are copies: each is compared while the next shard is being read."""
    bench.fill(1, 2, steps=40)
    cached, stream = bench.open(1, 2), bench.stream([1, 2])
    cached._pinned = sets = _TwoSets()  # type: ignore[assignment]
    start = cached.position()
    for _ in range(25):
        assert_same([next(cached)], [next(stream)])
    assert sets.turns >= 4
    cached.restore(start)  # the next shard may still be being read
    for batch in next_batches(bench.stream([1, 2]), 25):
        assert_same([next(cached)], [batch])
    flip_byte(next(bench.folder.root.glob("shard-000000_layer-02*")))
    cached.restore(start)
    with pytest.raises(DamagedShardError, match="checksum differs"):
        next(cached)
