"""Hub streaming, tested on shards in the hub's cache, which `datasets` reads like shards on the hub."""

import errno
import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sae_sweep import signals
from sae_sweep.config import HubDataset, PackingConfig, SaeSweepError
from sae_sweep.signals import Interrupted
from sae_sweep.text import TrainingSequences, fingerprint, hub, open_text
from sae_sweep.text import sequences as sequences_module
from tests.text.helpers import ByteTokenizer

REVISION = "0123456789abcdef0123456789abcdef01234567"
DATASET = HubDataset(
    name="tales", path="someone/tales", revision=REVISION, files="data/train-*.parquet", held_out_every=7
)
PACKING = PackingConfig(seq_len=16)
SHARDS, ROWS, ROW_GROUP = 3, 40, 8


def text_of(shard, row):
    return f"shard {shard} row {row}."


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An unreachable hub, with three shards in its local cache."""
    import huggingface_hub.constants

    root = tmp_path / "hub"
    folder = root / "datasets--someone--tales" / "snapshots" / REVISION / "data"
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        rows = {"text": [text_of(shard, row) for row in range(ROWS)], "id": list(range(ROWS))}
        pq.write_table(pa.table(rows), folder / f"train-{shard}.parquet", row_group_size=ROW_GROUP)
    (folder / "validation-0.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return folder


def training(source):
    return [text for unit in range(source.units) for text, _ in source.read(unit)]


def test_shards_in_the_cache_are_read_and_split_by_content(cache, tmp_path):
    source = open_text(DATASET, tmp_path)
    assert source.units == SHARDS
    everything = [text_of(shard, row) for shard in range(SHARDS) for row in range(ROWS)]
    held_out = list(source.held_out())
    assert 0 < len(held_out) < len(everything) / 3
    assert sorted(held_out + training(source)) == sorted(everything)
    assert not set(held_out) & set(training(source))


def test_repeated_texts_are_on_one_side(cache, tmp_path):
    (cache / "train-1.parquet").write_bytes((cache / "train-0.parquet").read_bytes())
    source = open_text(DATASET, tmp_path)
    assert not set(source.held_out()) & set(training(source))


def test_every_place_of_a_shard_is_resumed_exactly(cache, tmp_path):
    source = open_text(DATASET, tmp_path)
    whole = list(source.read(1))
    for done in (0, 6, 7, 8, 20, len(whole) - 1):
        place = json.loads(json.dumps(whole[done][1]))
        assert [text for text, _ in source.read(1, place)] == [text for text, _ in whole[done + 1 :]]


def test_resuming_reads_no_row_group_far_before_the_place(cache, tmp_path, monkeypatch):
    import pyarrow.dataset as pads

    source = open_text(DATASET, tmp_path)
    place = list(source.read(0))[-2][1]
    opened: list[list[int]] = []
    to_batches = pads.ParquetFileFragment.to_batches

    class Spy:
        """A replacement for `pyarrow.dataset.ParquetFileFormat`, because its fragments cannot be patched."""

        def __init__(self, **options):
            self._format = pads_format(**options)

        def make_fragment(self, file):
            return Fragment(self._format.make_fragment(file))

    class Fragment:
        def __init__(self, fragment):
            self._fragment = fragment

        def __getattr__(self, name):
            return getattr(self._fragment, name)

        def subset(self, row_group_ids):
            return Fragment(self._fragment.subset(row_group_ids=row_group_ids))

        def to_batches(self, **options):
            opened.append([group.id for group in self._fragment.row_groups])
            return to_batches(self._fragment, **options)

    pads_format = pads.ParquetFileFormat
    monkeypatch.setattr(pads, "ParquetFileFormat", Spy)
    assert len(list(source.read(0, place))) == 1
    last = ROWS // ROW_GROUP - 1
    assert opened in ([[last]], [[last - 1], [last]])


def test_a_stream_of_sequences_is_resumed_across_shards_and_epochs(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sequences_module, "BLOCK_CHARS", 60)
    source = open_text(DATASET, tmp_path)
    stream = TrainingSequences(source, PACKING, ByteTokenizer(), data_seed=3)
    for _ in range(4):
        stream.read(37)
        position = json.loads(json.dumps(stream.position()))
        expected = stream.read(5)
        again = TrainingSequences(source, PACKING, ByteTokenizer(), data_seed=3)
        again.restore(position)
        np.testing.assert_array_equal(again.read(5), expected)
    assert int(stream.epochs) == 1


def test_a_missing_column_is_named(cache, tmp_path):
    source = open_text(HubDataset(**{**vars(DATASET), "text_key": "story"}), tmp_path)
    with pytest.raises(
        SaeSweepError, match=r"train-0\.parquet has no column 'story': set dataset\.text_key to text$"
    ):
        next(source.read(0))


def test_a_damaged_shard_is_named(cache, tmp_path):
    (cache / "train-1.parquet").write_bytes(b"PAR1 but no more")
    source = open_text(DATASET, tmp_path)
    with pytest.raises(SaeSweepError, match=r"train-1\.parquet is not a readable Parquet file"):
        next(source.read(1))


def test_a_hub_out_of_reach_says_how_to_work_offline(cache, tmp_path):
    with pytest.raises(SaeSweepError) as caught:
        open_text(HubDataset(**{**vars(DATASET), "path": "someone/else"}), tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot read someone/else at {REVISION} from the Hugging Face hub (")
    for way in ("dataset=stdlib_docs", "dataset=files dataset.path=", "hf download someone/else"):
        assert way in message


def test_shards_on_the_hub_are_those_that_match(monkeypatch):
    import huggingface_hub

    names = ["README.md", "data/train-1.parquet", "data/train-0.parquet", "data/validation-0.parquet"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: info)
    root = f"hf://datasets/someone/tales@{REVISION}/data"
    assert hub.list_shards(DATASET) == [f"{root}/train-0.parquet", f"{root}/train-1.parquet"]
    with pytest.raises(SaeSweepError, match=r"or \.jsonl\.zst files match dataset\.files=old/"):
        hub.list_shards(HubDataset(**{**vars(DATASET), "files": "old/*.parquet"}))
    with pytest.raises(SaeSweepError, match=r"no \.parquet or \.jsonl or"):
        hub.list_shards(HubDataset(**{**vars(DATASET), "files": "*.md"}))


def test_the_fingerprint_needs_no_network(tmp_path):
    assert fingerprint(DATASET, tmp_path) == f"someone/tales@{REVISION}:data/train-*.parquet"


class Line:
    """A connection that breaks before each of the given reads of an example, and how its shard is opened."""

    def __init__(self, monkeypatch, source, breaks, error=None):
        self.error = error or ConnectionError("Server Disconnected")
        self.breaks = sorted(breaks)
        self.opened = self.read = 0
        self._real = source._open
        source._shards = [f"hf://{shard}" for shard in source._shards]
        self._files = {shard: shard.removeprefix("hf://") for shard in source._shards}
        load = hub._load_shard
        monkeypatch.setattr(hub, "_load_shard", lambda shard, columns=None: load(self._files[shard], columns))
        monkeypatch.setattr(source, "_open", self._open)
        self.waited = []
        monkeypatch.setattr(hub, "wait", lambda seconds: self.waited.append(seconds) is None)

    def _open(self, unit):
        self.opened += 1
        return Examples(self, self._real(unit))


class Examples:
    def __init__(self, line, examples):
        self._line, self._examples = line, examples
        self.state_dict, self.load_state_dict = examples.state_dict, examples.load_state_dict

    def __iter__(self) -> Iterator[object]:
        for example in self._examples:
            if self._line.breaks and self._line.read == self._line.breaks[0]:
                self._line.breaks.pop(0)
                raise self._line.error
            self._line.read += 1
            yield example


def test_a_connection_that_breaks_is_tried_again_where_it_broke_in_one_line_each(
    cache, tmp_path, monkeypatch, caplog
):
    source = open_text(DATASET, tmp_path)
    whole = list(source.read(1))
    line = Line(monkeypatch, source, [0, 9, 9, 30])
    assert [text for text, _ in source.read(1)] == [text for text, _ in whole]
    assert line.waited == [5, 5, 15, 5]  # a row that arrives starts the waits anew
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[2].endswith("train-1.parquet (Server Disconnected): trying again in 15 s (2 of 5)")


def test_a_hub_that_is_gone_is_given_up_and_says_why_and_what_to_do(cache, tmp_path, monkeypatch, caplog):
    source = open_text(DATASET, tmp_path)
    refused = ConnectionError("Server Disconnected")
    refused.__cause__ = OSError(errno.ECONNREFUSED, "Connection refused")
    line = Line(monkeypatch, source, [20] * 100, refused)
    with pytest.raises(SaeSweepError) as caught:
        list(source.read(1))
    assert line.waited == list(hub.WAITS_S)
    assert len(caplog.records) == len(hub.WAITS_S)
    message = str(caught.value)
    assert "from the Hugging Face hub in 6 tries ([Errno 111] Connection refused). Launch the same" in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), OSError(errno.ENOSPC, "No space left")])
def test_what_no_further_try_mends_is_not_tried_again(cache, tmp_path, monkeypatch, error):
    source = open_text(DATASET, tmp_path)
    line = Line(monkeypatch, source, [5], error)
    with pytest.raises(SaeSweepError, match="cannot read someone/tales"):
        list(source.read(1))
    assert line.opened == 1
    assert line.waited == []


def test_a_file_on_this_disk_is_not_tried_again(cache, tmp_path, monkeypatch):
    source = open_text(DATASET, tmp_path)
    line = Line(monkeypatch, source, [5])
    source._shards = [shard.removeprefix("hf://") for shard in source._shards]
    line._files = {shard: shard for shard in source._shards}
    with pytest.raises(SaeSweepError, match="cannot read someone/tales"):
        list(source.read(1))
    assert line.opened == 1


def test_a_stop_ends_the_waiting(cache, tmp_path, monkeypatch):
    source = open_text(DATASET, tmp_path)
    line = Line(monkeypatch, source, [5])
    monkeypatch.setattr(hub, "wait", signals.wait)
    monkeypatch.setattr(hub, "WAITS_S", (60.0,) * 5)
    began = time.monotonic()

    def stopped():
        with signals.stop_signals() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(SaeSweepError, match="cannot read someone/tales"):
                list(source.read(1))

    with pytest.raises(Interrupted):
        stopped()
    assert line.opened == 1
    assert time.monotonic() - began < 30


def test_the_libraries_neither_try_again_nor_talk(cache, tmp_path):
    import datasets

    next(open_text(DATASET, tmp_path).read(0))
    assert datasets.config.STREAMING_READ_MAX_RETRIES == datasets.config.STREAMING_OPEN_MAX_RETRIES == 1
    for name in (
        "datasets.utils.file_utils",
        "huggingface_hub.utils._http",
        "fsspec.caching",
        "urllib3.util",
    ):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    "rows", [[["a"], ["b"]], [1, 2], [[1, 2], [3]], [b"a", b"b"], [{"a": "b"}], [True]], ids=str
)
def test_a_column_that_is_no_text_is_named(cache, tmp_path, rows):
    pq.write_table(pa.table({"text": rows}), cache / "train-1.parquet")
    source = open_text(DATASET, tmp_path)
    with pytest.raises(
        SaeSweepError, match=r"train-1\.parquet: 'text' holds (\w+, not text: set|token ids, which)"
    ):
        next(source.read(1))


def test_text_that_is_not_utf_8_is_named(cache, tmp_path):
    offsets = pa.py_buffer(np.array([0, 2], np.int32))
    column = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"text": column}), cache / "train-1.parquet")
    source = open_text(DATASET, tmp_path)
    with pytest.raises(SaeSweepError, match=r"train-1\.parquet holds text that is not UTF-8: "):
        next(source.read(1))


def test_nulls_and_empty_row_groups_and_shards_are_skipped(cache, tmp_path):
    table = pa.table({"text": [text_of(1, row) for row in range(20)]})
    with pq.ParquetWriter(cache / "train-1.parquet", table.schema) as writer:
        for part in (table[:0], table[:9], table[:0], table[9:], table[:0]):
            writer.write_table(part)
    pq.write_table(pa.table({"text": pa.nulls(3)}), cache / "train-0.parquet")
    with pq.ParquetWriter(cache / "train-2.parquet", table.schema):
        pass
    source = open_text(DATASET, tmp_path)
    whole = list(source.read(1))
    assert {*(text for text, _ in whole), *filter(None, source.held_out())} == set(table["text"].to_pylist())
    for done in range(len(whole)):
        place = json.loads(json.dumps(whole[done][1]))
        assert [text for text, _ in source.read(1, place)] == [text for text, _ in whole[done + 1 :]]
    assert not any(text for text, _ in source.read(0))
    assert list(source.read(2)) == []
    stream = TrainingSequences(source, PACKING, ByteTokenizer(), data_seed=0)
    assert stream.read(30).shape == (30, 16)


def pack(lines, suffix):
    whole = b"".join(lines)
    kind = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}.get(suffix)
    return whole if kind is None else pa.compress(whole, kind, asbytes=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_lines_of_json_are_read_and_resumed_too(cache, tmp_path, suffix):
    dataset = HubDataset(**{**vars(DATASET), "files": f"data/*{suffix}"})
    lines = [
        json.dumps({"text": text_of(0, row), "meta": {"n": row}}).encode() + b"\n" for row in range(ROWS)
    ]
    lines[3:3] = [b"\n", b'{"text": null}\n', b'{"text": "a lone \\ud800 surrogate"}\n']
    (cache / f"00{suffix}").write_bytes(pack(lines, suffix))
    source = open_text(dataset, tmp_path)
    whole = list(source.read(0))
    texts = [text for text, _ in whole] + list(source.held_out())
    assert set(texts) == {text_of(0, row) for row in range(ROWS)} | {"", "a lone \ufffd surrogate"}
    for done in (0, 6, len(whole) - 1):
        place = json.loads(json.dumps(whole[done][1]))
        assert [text for text, _ in source.read(0, place)] == [text for text, _ in whole[done + 1 :]]


@pytest.mark.parametrize(
    ("suffix", "lines", "problem"),
    [
        (
            ".jsonl",
            [b'{"text": "a"}\n', b'{"text": \n'],
            r"00\.jsonl, line 2: not a line of JSON",
        ),
        (".jsonl", [b'{"story": "a"}\n'], r"00\.jsonl, line 1: no key 'text': set dataset\.text_key"),
        (".jsonl", [b'{"text": 7}\n'], r"00\.jsonl, line 1: 'text' holds int, not text"),
        (".jsonl.zst", None, r"00\.jsonl\.zst is damaged: "),
        (".jsonl.gz", None, r"00\.jsonl\.gz is damaged: "),
    ],
)
def test_damaged_lines_are_named(cache, tmp_path, suffix, lines, problem):
    whole = pack(lines or [os.urandom(4000).hex().encode()], suffix)
    (cache / f"00{suffix}").write_bytes(whole if lines else whole[: len(whole) // 2])
    source = open_text(HubDataset(**{**vars(DATASET), "files": f"data/*{suffix}"}), tmp_path)
    with pytest.raises(SaeSweepError, match=problem):
        list(source.held_out())


def test_every_data_set_of_the_package_is_pinned_to_a_commit():
    for file in (Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"):
        revision = yaml.safe_load(file.read_text()).get("revision")
        of_model = revision == "${model.revision}"  # which is pinned in conf/model
        assert revision is None or of_model or re.fullmatch("[0-9a-f]{40}", revision), file
