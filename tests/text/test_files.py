import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.config import FilesDataset, SaeSweepError
from sae_sweep.text import fingerprint, open_text
from sae_sweep.text.files import LocalFiles

CACHE = Path("no cache is needed")


def write_text(folder, n):
    for index in range(n):
        (folder / f"{index:03}.txt").write_text(f"document {index}", encoding="utf-8")


def write_marked(path, texts):
    path.write_text("".join(texts), encoding="utf-8")


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts), encoding="utf-8")


def write_parquet(path, texts, row_group_size=4, column="text"):
    pq.write_table(pa.table({column: texts, "other": [0] * len(texts)}), path, row_group_size=row_group_size)


def splits(path, **keys):
    source = LocalFiles(FilesDataset(path=str(path), **keys), CACHE)
    training = [text for unit in range(source.units) for text, _ in source.read(unit)]
    return training, list(source.held_out())


def summary(path):
    return LocalFiles(FilesDataset(path=str(path)), CACHE).summary


def refusal(path, **keys):
    with pytest.raises(SaeSweepError) as caught:
        LocalFiles(FilesDataset(path=str(path), **keys), CACHE)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize(("n", "held"), [(2, 1), (7, 1), (20, 2), (23, 3)])
def test_of_few_documents_an_exact_share_is_held_out(tmp_path, suffix, n, held):
    texts = [f"document {index}" for index in range(n)]
    if suffix == "txt":
        write_text(tmp_path, n)
    else:
        {"jsonl": write_lines, "parquet": write_parquet}[suffix](tmp_path / f"rows.{suffix}", texts)
    training, held_out = splits(tmp_path, held_out_every=10)
    assert len(held_out) == held
    assert sorted(training + held_out) == sorted(texts)


def test_of_many_documents_about_a_share_is_held_out(tmp_path):
    texts = [f"document {index}" for index in range(3000)]
    write_parquet(tmp_path / "rows.parquet", texts, row_group_size=500)
    training, held_out = splits(tmp_path, held_out_every=10)
    assert 240 < len(held_out) < 360
    assert sorted(training + held_out) == sorted(texts)


@pytest.mark.parametrize("n", [30, 1500])
def test_equal_documents_are_on_one_side(tmp_path, n):
    write_lines(tmp_path / "a.jsonl", [f"document {index % 10}" for index in range(n)])
    write_parquet(tmp_path / "b.parquet", [f"document {index % 10}" for index in range(n)])
    training, held_out = splits(tmp_path, held_out_every=3)
    assert set(training).isdisjoint(held_out)
    assert len(training + held_out) == 2 * n


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), every=st.integers(2, 6))
def test_the_splits_share_nothing_and_miss_nothing(tmp_path_factory, counts, every):
    folder = tmp_path_factory.mktemp("text")
    texts = [[f"{file}.{row}" for row in range(count)] for file, count in enumerate(counts)]
    for file, rows in enumerate(texts):
        (write_parquet if file % 2 else write_lines)(
            folder / f"{file}.{'parquet' if file % 2 else 'jsonl'}", rows
        )
    if sum(counts) < 2:
        return
    training, held_out = splits(folder, held_out_every=every)
    assert training
    assert held_out
    assert sorted(training + held_out) == sorted(text for rows in texts for text in rows)


def test_a_row_group_is_resumed_in_the_middle(tmp_path):
    write_parquet(tmp_path / "a.parquet", [f"row {index}" for index in range(20)], row_group_size=10)
    source = LocalFiles(FilesDataset(path=str(tmp_path), held_out_every=50), CACHE)
    texts = list(source.read(0))
    assert len(texts) >= 9
    assert list(source.read(0, texts[3][1])) == texts[4:]


def test_a_glob_and_a_single_file_are_found(tmp_path):
    write_text(tmp_path, 4)
    write_lines(tmp_path / "rows.jsonl", ["one", "two"])
    (tmp_path / "notes.md").write_text("not text to train on")
    training, held_out = splits(f"{tmp_path}/00[01].txt")
    assert sorted(training + held_out) == ["document 0", "document 1"]
    training, held_out = splits(tmp_path)
    assert len(training + held_out) == 6


def test_the_fingerprint_follows_the_contents_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name, 3)
    of = {name: fingerprint(FilesDataset(path=str(tmp_path / name)), tmp_path) for name in ("a", "b")}
    assert of["a"] == of["b"]
    (tmp_path / "b" / "001.txt").write_text("changed")
    assert fingerprint(FilesDataset(path=str(tmp_path / "b")), tmp_path) != of["a"]


def test_the_fingerprint_is_that_of_what_is_read(tmp_path):
    write_text(tmp_path, 3)
    before = fingerprint(FilesDataset(path=str(tmp_path)), tmp_path)
    (tmp_path / "._000.txt").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "000.txt").write_text("hidden")
    (tmp_path / "again.txt").symlink_to(tmp_path / "000.txt")
    (tmp_path / "0.txt").write_bytes(b"")
    assert fingerprint(FilesDataset(path=str(tmp_path)), tmp_path) == before
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == [f"document {index}" for index in range(3)]


def fingerprint_of_bytes(folder):
    """The fingerprint of version 0.1.0."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(path.suffix.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize(
    ("suffix", "row"), [*((kind, "\ufeffplain") for kind in ("txt", "jsonl", "parquet")), ("parquet", " \n")]
)
def test_only_texts_that_version_0_1_0_read_otherwise_have_another_fingerprint(tmp_path, suffix, row):
    write_text(tmp_path, 2)
    path = tmp_path / f"rows.{suffix}"
    write = {"txt": write_marked, "jsonl": write_lines, "parquet": write_parquet}[suffix]
    write(path, [row])
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == ["document 0", "document 1", *row.strip("\ufeff \n").split()]
    assert fingerprint(FilesDataset(path=str(tmp_path)), tmp_path) != fingerprint_of_bytes(tmp_path)
    write(path, ["not marked"])
    assert fingerprint(FilesDataset(path=str(tmp_path)), tmp_path) == fingerprint_of_bytes(tmp_path)


def test_open_text_opens_files(tmp_path):
    write_text(tmp_path, 3)
    assert isinstance(open_text(FilesDataset(path=str(tmp_path)), tmp_path), LocalFiles)


def test_what_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "gone") == f"dataset.path={tmp_path / 'gone'}: no such file or folder"
    assert "no .txt, .jsonl, .parquet file there" in refusal(tmp_path)
    assert "no .txt, .jsonl, .parquet file there" in refusal(f"{tmp_path}/*.txt")
    (tmp_path / "a.csv").write_text("a,b")
    assert ".csv is not one of .txt, .jsonl, .parquet (" in refusal(tmp_path / "a.csv")
    hint = "; other files (1); text under another ending is read once it is named .txt"
    assert refusal(tmp_path).endswith(hint)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_empty_files_are_skipped_and_counted(tmp_path, name, content):
    write_text(tmp_path, 3)
    packed = gzip.compress(content) if name.endswith(".gz") and content else content
    if name.endswith(".parquet"):
        write_parquet(tmp_path / name, pa.array([], pa.string()))
    else:
        (tmp_path / name).write_bytes(packed)
    training, held_out = splits(tmp_path)
    assert len(training + held_out) == 3
    assert "files without text (1)" in summary(tmp_path)


def test_only_empty_files_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    assert "there is no text to read" in refusal(tmp_path)
    assert "files without text (1)" in refusal(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("")
    assert refusal(tmp_path).endswith("; files without text (1)")


def test_invalid_characters_are_replaced_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xe2\x82 a")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "na\xefve \\ud83d!", "other": "\xff"}\n')
    offsets = pa.py_buffer(np.array([0, 3, 5], np.int32))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffbcd")])
    write_parquet(tmp_path / "c.parquet", column)
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == ["a\ufffdb", "caf\ufffd \ufffd a", "cd", "na\ufffdve \ufffd!"]
    assert summary(tmp_path).endswith("3 files, 4 documents; invalid characters replaced: 5")


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 4,
        "Привет, мир. ".encode("cp1251") * 50,
        "plain text".encode("utf-16-le") * 50,
        "short".encode("utf-16-le"),
    ],
)
def test_a_file_that_is_not_text_is_named(tmp_path, content):
    write_text(tmp_path, 3)
    (tmp_path / "001.txt").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / '001.txt'} is not UTF-8 text: ")
    assert "iconv" in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_not_text(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("naïve\r\nte\rxt".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\xef\xbb\xbf{"text": "two"}\n')
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == ["naïve\nte\nxt", "one", "two"]


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_lines_in_another_encoding_are_named(tmp_path, encoding):
    (tmp_path / "b.jsonl").write_bytes('{"text": "a"}\n'.encode(encoding))
    assert refusal(tmp_path).startswith(f"{tmp_path / 'b.jsonl'}, line 1: it is not UTF-8 but {encoding}")
    assert f"iconv -f {encoding} " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a"', "not a line of JSON (Expecting ',' delimiter at column 13)"),
        ('{"text": ' + "[" * 100_000, "not a line of JSON"),
        ('{"body": "a"}', "no key 'text': set dataset.text_key"),
        ('{"text": 3}', "'text' holds int, not text"),
        ('{"text": [50256, 318]}', "'text' holds token ids, which mean nothing to another tokenizer"),
        ('["a"]', "no key 'text'"),
        ("\xff", "not a line of JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line.encode("latin-1") + b'\n{"text": "good"}\n')
    assert refusal(path).startswith(f"{path}, line 3: {problem}")


def test_a_bad_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 but no more")
    assert refusal(path).startswith(f"cannot read {path}: ")
    write_parquet(path, ["a", "b"], column="body")
    assert refusal(path) == f"{path} has no column 'text': set dataset.text_key to body"
    assert "column 'other' holds int64, not text" in refusal(path, text_key="other")
    write_parquet(path, pa.array([], pa.string()))


def test_a_column_that_is_there_twice_is_named(tmp_path):
    path, column = tmp_path / "a.parquet", pa.array(["a", "b"])
    pq.write_table(pa.Table.from_arrays([column, column], names=["text", "text"]), path)
    assert refusal(path).startswith(f"{path} has several columns 'text'")


def test_a_single_document_cannot_be_split(tmp_path):
    for name in ("book", "copy"):
        (tmp_path / f"{name}.txt").write_text("one long book")
        assert "holds a single distinct document" in refusal(tmp_path)


def test_nulls_and_empty_rows_are_skipped_and_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a", None, "", "b", "c", None, " \n", "\ufeff"])
    write_parquet(tmp_path / "b.parquet", pa.nulls(3))
    write_parquet(tmp_path / "c.parquet", pa.array([None, None], pa.string()))
    (tmp_path / "d.jsonl").write_text('{"text": null}\n\n{"text": " "}\n{"text": "d"}\n')
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == ["a", "b", "c", "d"]
    assert summary(tmp_path) == (
        f"dataset.path={tmp_path}: 4 files, 4 documents; "
        "skipped: null rows (8), empty rows (5), files without text (2)"
    )


def test_skipped_rows_count_for_the_place(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a", None, "b", "", "c", "d", "e", "f"], row_group_size=8)
    source = LocalFiles(FilesDataset(path=str(tmp_path), held_out_every=50), CACHE)
    texts = list(source.read(0))
    for index, (_, place) in enumerate(texts):
        assert list(source.read(0, place)) == texts[index + 1 :]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["one", None, "two"], pa.large_string()),
        pa.array(["one", None, "two"], pa.string()).cast(pa.string_view()),
        pa.array(["one", None, "two", "one"]).dictionary_encode(),
        pa.array(["one", None, "two"], pa.large_string()).dictionary_encode(),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["one", None, "two"])),
    ],
    ids=lambda column: str(column.type),
)
def test_every_arrow_type_that_holds_text_is_text(tmp_path, column):
    write_parquet(tmp_path / "a.parquet", column)
    training, held_out = splits(tmp_path)
    assert {*training, *held_out} == {"one", "two"}


@pytest.mark.parametrize(
    "column",
    [
        [["one"], ["two"]],
        [b"one", b"two"],
        [1, 2],
        [{"a": "one"}],
        [True],
        pa.array([1, 2]).dictionary_encode(),
    ],
    ids=str,
)
def test_what_is_no_text_is_named(tmp_path, column):
    write_parquet(tmp_path / "a.parquet", column)
    assert "not text: set dataset.text_key to another" in refusal(tmp_path)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16(), 2)], ids=str
)
def test_text_that_is_already_token_ids_is_named(tmp_path, kind):
    write_parquet(tmp_path / "a.parquet", pa.array([[1, 2], [3, 4]], kind))
    told = "token ids, which mean nothing to another tokenizer: decode them"
    assert f"'text' holds {told}" in refusal(tmp_path)
    assert refusal(tmp_path, text_key="body").endswith("has no column 'body': it holds " + told)


def test_a_table_without_text_has_no_column_to_choose(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1, 2])
    assert refusal(tmp_path, text_key="body").endswith("no column 'body': no other holds text either")


def compress(content, suffix):
    if suffix == "gz":
        return gzip.compress(content)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_are_read(tmp_path, suffix):
    half = b"".join(b'{"text": "row %d"}\n\n' % row for row in range(9)) + b'{"text": null}\n'
    # two compressed parts, one after the other, as `cat` and parallel compressors write them
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(
        compress(half, suffix) + compress(b'{"text": "end"}', suffix)
    )
    (tmp_path / f"b.txt.{suffix}").write_bytes(compress("naïve\r\n".encode("utf-8-sig"), suffix))
    training, held_out = splits(tmp_path)
    assert sorted(training + held_out) == ["end", "naïve\n", *(f"row {row}" for row in range(9))]
    assert "2 files, 11 documents; skipped: empty rows (9), null rows (1)" in summary(tmp_path)


def test_compressing_a_text_again_does_not_change_its_fingerprint(tmp_path):
    lines = b"".join(b'{"text": "row %d"}\n' % row for row in range(9))
    found = set()
    for level, when in ((1, 0), (9, 0), (9, 12345)):
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines, level, mtime=when))
        found.add(LocalFiles.fingerprint(FilesDataset(path=str(tmp_path)), CACHE))
    assert len(found) == 1
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines + b'{"text": "more"}\n'))
    assert LocalFiles.fingerprint(FilesDataset(path=str(tmp_path)), CACHE) not in found


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_file_is_resumed_in_the_middle(tmp_path, suffix):
    lines = b"\n".join(b'{"text": "row %d"}' % row for row in range(20))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress(lines, suffix))
    source = LocalFiles(FilesDataset(path=str(tmp_path), held_out_every=50), CACHE)
    texts = list(source.read(0))
    assert source.units == 1
    assert list(source.read(0, texts[11][1])) == texts[12:]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_damaged_compressed_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    whole = compress(b'{"text": "a"}\n' * 20, suffix)
    for damaged in (whole[:-3], whole + b"more", b"no such thing"):
        path.write_bytes(damaged)
        assert refusal(path).startswith(f"cannot read {path}")
    path.write_bytes(compress(b'{"text": "a"}\n{"text"', suffix))
    assert refusal(path).startswith(f"{path}, line 2: not a line of JSON")
    text = tmp_path / f"b.txt.{suffix}"
    text.write_bytes(whole[:-3])
    assert refusal(text).startswith(f"cannot read {text}")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_file_that_is_changed_while_it_is_read_is_refused(tmp_path, suffix):
    write = {"txt": lambda path, texts: path.write_text(texts[0]), "jsonl": write_lines}
    write["parquet"] = write_parquet
    for name in ("a", "b"):
        write[suffix](tmp_path / f"{name}.{suffix}", [f"document {name}"] * 3)
    source = LocalFiles(FilesDataset(path=str(tmp_path)), CACHE)
    write[suffix](tmp_path / f"a.{suffix}", ["another one"] * 3)
    with pytest.raises(SaeSweepError, match=rf"a\.{suffix} was changed while it was read"):
        list(source.read(0))
