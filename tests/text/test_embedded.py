"""The embedded corpora: documents, removal of repeats, and a cache that is complete or absent."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sae_sweep.config import EmbeddedDataset, SaeSweepError
from sae_sweep.store.partial import partial_path
from sae_sweep.text import embedded, fingerprint, open_text, python_files
from sae_sweep.text.embedded import EMBEDDED, Corpus, build_corpora, embedded_corpus
from sae_sweep.text.python_files import Document, document_pair, drop_repeats, is_held_out, topic_documents

MODULE = '''"""About the module.

More about it."""
# a comment stays
class Thing:
    """What a thing is: naïve."""

    def one(self): """Beside the def."""; return "kept"

    def two(self):
        "Single quotes."
        text = """no docstring"""
        return text
'''


def paragraph(topic: str) -> str:
    return f"The paragraph about {topic} says, at some length, what everybody should know about {topic}."


def blocks(corpora: dict[str, list[Document]]) -> Iterator[tuple[str, bool, str]]:
    """Yield (corpus, side, block) of all blocks that count as repeats."""
    for name, documents in corpora.items():
        for document in documents:
            for block in re.split(r"\n[ \t]*\n", document.text):
                normal = " ".join(block.split())
                if len(normal) >= python_files.MIN_BLOCK_CHARS:
                    yield name, document.held_out, normal


def test_docstrings_and_code_are_separated() -> None:
    docs, code = document_pair("pkg/module.py", MODULE)
    assert docs.text.split("\n\n") == [
        "About the module.",
        "More about it.",
        "What a thing is: naïve.",
        "Beside the def.",
        "Single quotes.",
    ]
    assert "# a comment stays" in code.text
    assert '"""no docstring"""' in code.text
    assert 'return "kept"' in code.text
    assert not any(line in code.text for line in docs.text.split("\n\n"))


@pytest.mark.parametrize("source", ["def broken(:", "print 'python 2'", "nul = '\0'"])
def test_invalid_python_gives_no_documents(source: str) -> None:
    assert [document.text for document in document_pair("a.py", source)] == ["", ""]


@pytest.mark.parametrize("statement", ["topics = ", "topics: dict[str, str] = "])
def test_each_topic_is_a_document(statement: str) -> None:
    documents = topic_documents("t.py", statement + "{'while': 'Loops.', 'assert': 'Checks.'}")
    assert [(d.path, d.text) for d in documents] == [("t.py#assert", "Checks."), ("t.py#while", "Loops.")]


def test_about_one_path_in_twenty_is_held_out() -> None:
    share = sum(is_held_out(f"package/module_{i}.py") for i in range(4_000)) / 4_000
    assert share == pytest.approx(python_files.HELD_OUT_SHARE, abs=0.012)


def test_repeats_stay_in_the_first_place_only() -> None:
    shared, other = paragraph("lizards"), paragraph("rain")
    long = "\n\n".join(paragraph(f"thing {i}") for i in range(3))
    held_out = "\n \n".join([other, *(paragraph(f"case {i}") for i in range(6))])
    corpora = {
        "first": [Document("a", f"{shared}\n\n{long}", False), Document("b", held_out, True)],
        "second": [Document("c", f"{other}\n\n\n    {shared}\n\n" + long.replace("thing", "case"), False)],
    }
    kept = drop_repeats(corpora)
    texts = {document.path: document.text for documents in kept.values() for document in documents}
    assert shared in texts["a"]
    assert shared not in texts["c"]
    assert other in texts["c"], "what is held out yields to any training side"
    assert texts["b"] == "\n \n".join(paragraph(f"case {i}") for i in (3, 4, 5))


def test_short_blocks_may_recur_and_spacing_is_kept() -> None:
    text = "import os\n\n\n" + "\n\n\n".join(paragraph(f"thing {i}") for i in range(3)) + "\n\nimport os"
    kept = drop_repeats({"one": [Document("a", text, False)]})
    assert kept["one"][0].text == text


def test_documents_that_become_short_are_dropped() -> None:
    text = "\n\n".join(paragraph(f"thing {i}") for i in range(3))
    documents = [Document("a", text, False), Document("b", text + "\n\na line of its own", False)]
    assert [document.path for document in drop_repeats({"one": documents})["one"]] == ["a"]


def test_sources_go_to_their_corpora_in_the_order_of_their_paths() -> None:
    def source(name: str) -> str:
        docs = "\n\n".join(paragraph(f"{name} {i}") for i in range(3))
        return f'"""{docs}"""\n' + "\n".join(f"{name}_variable_{i} = {i}" for i in range(30))

    topics = f"topics = {{'lambda': {paragraph('lambda') * 3!r}}}"
    files = {
        "stdlib": [("os.py", source("os")), (embedded.TOPICS, topics), ("abc.py", source("abc"))],
        "library": [("torch/nn.py", source("nn"))],
    }
    corpora = build_corpora(files)
    paths = {name: [document.path for document in corpora[name]] for name in EMBEDDED}
    assert paths == {
        "stdlib_docs": ["abc.py", "os.py", f"{embedded.TOPICS}#lambda"],
        "stdlib_code": ["abc.py", "os.py"],
        "library_docs": ["torch/nn.py"],
        "library_code": ["torch/nn.py"],
    }
    assert corpora == build_corpora({origin: files[origin][::-1] for origin in files})


def test_folders_of_tests_and_generated_files_are_skipped() -> None:
    skipped = [
        "a/tests/x.py",
        "a/test/x.py",
        "torch/testing/x.py",
        "a/x_pb2.py",
        "a/x.pyi",
        "idlelib/idle_test/x.py",
    ]
    assert not any(embedded._is_included(embedded.PurePosixPath(path)) for path in skipped)
    assert embedded._is_included(embedded.PurePosixPath("unittest/case.py"))


def test_roots_are_the_requirements_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    # these came later: with them the corpora, and the ids of runs on them, would be others
    assert {canonicalize_name(name) for name in embedded.ROOTS} == wanted - {"scipy", "pillow"}


def test_development_tools_are_not_part_of_the_libraries() -> None:
    names = {canonicalize_name(d.name) for d in embedded.library_distributions()}
    assert {"torch", "numpy", "tokenizers"} <= names
    assert names.isdisjoint({"pytest", "ruff", "sae-sweep"})


def test_an_embedded_corpus_is_a_text_with_one_document_per_unit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = Corpus("stdlib_docs", ["one", "two", "three"], ["held"], "f00d")
    monkeypatch.setattr(embedded, "embedded_corpus", lambda name, cache: corpus)
    source = open_text(EmbeddedDataset(), tmp_path)
    documents = [list(source.read(unit)) for unit in range(source.units)]
    assert documents == [[("one", 1)], [("two", 1)], [("three", 1)]]
    assert list(source.read(0, 1)) == []
    assert list(source.held_out()) == ["held"]
    assert fingerprint(EmbeddedDataset(), tmp_path) == "f00d"


def test_unknown_names_are_refused_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(
        SaeSweepError, match="unknown embedded corpus 'docs': choose one of stdlib_docs, stdlib_code"
    ):
        embedded_corpus("docs", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def corpora(corpora_cache: Path) -> dict[str, Corpus]:
    return {name: embedded_corpus(name, corpora_cache) for name in EMBEDDED}


def as_documents(corpora: dict[str, Corpus]) -> dict[str, list[Document]]:
    return {
        name: [Document("", text, False) for text in corpus.train]
        + [Document("", text, True) for text in corpus.held_out]
        for name, corpus in corpora.items()
    }


def test_no_text_is_in_two_corpora_or_on_two_sides(corpora: dict[str, Corpus]) -> None:
    found = list(blocks(as_documents(corpora)))
    assert len(found) > 10_000
    assert len({block for _, _, block in found}) == len(found)


def test_the_real_corpora_have_both_sides(corpora: dict[str, Corpus]) -> None:
    assert sum(map(len, corpora["stdlib_docs"].train)) > 1_000_000
    assert sum(map(len, corpora["stdlib_code"].train)) > 4_000_000
    for name in ("stdlib_docs", "stdlib_code"):
        share = len(corpora[name].held_out) / len(corpora[name].train)
        assert 0.02 < share < 0.1, name
    assert all(corpus.train for corpus in corpora.values())


def test_the_language_reference_is_in_the_docs_only(corpora: dict[str, Corpus]) -> None:
    def has(texts: list[str]) -> bool:
        return any('The "assert" statement' in text for text in texts)

    assert has(corpora["stdlib_docs"].train + corpora["stdlib_docs"].held_out)
    assert not has(corpora["stdlib_code"].train + corpora["stdlib_code"].held_out)


def test_fingerprints_tell_texts_and_sides_apart(
    corpora: dict[str, Corpus], corpora_cache: Path, tmp_path: Path
) -> None:
    fingerprints = {corpus.fingerprint for corpus in corpora.values()}
    assert len(fingerprints) == len(EMBEDDED)
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint) for fingerprint in fingerprints)
    documents = as_documents(corpora)["library_docs"]
    for changed in (documents[1:], [documents[0]._replace(held_out=True), *documents[1:]]):
        embedded._write_corpora({"library_docs": changed}, tmp_path)
        content = embedded._read_intact(tmp_path, "library_docs")
        assert content is not None
        assert embedded._corpus("library_docs", content).fingerprint not in fingerprints


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make builds instant; returns a list with one item per build."""
    builds: list[int] = []

    def build(_: object) -> dict[str, list[Document]]:
        builds.append(1)
        return {name: [Document("a.py", f"text of {name}", False)] for name in EMBEDDED}

    monkeypatch.setattr(embedded, "installed_sources", lambda _: {})
    monkeypatch.setattr(embedded, "build_corpora", build)
    return builds


def test_processes_that_build_at_once_build_once(
    little: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # threads instead of processes; requirements are parsed first: ast is not thread-safe in Python 3.11
    distributions = embedded.library_distributions()
    monkeypatch.setattr(embedded, "library_distributions", lambda: distributions)
    results: list[Corpus] = []
    threads = [
        Thread(target=lambda: results.append(embedded_corpus("library_code", tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(little) == 1
    assert [result.train for result in results] == [["text of library_code"]] * 4
    assert embedded_corpus("library_code", tmp_path) == results[0]


def test_what_a_killed_build_left_goes(little: list[int], tmp_path: Path) -> None:
    left = partial_path(tmp_path / "corpora" / "0123456789abcdef")
    left.mkdir(parents=True)
    (left / "stdlib_docs.jsonl").write_text("{")
    (tmp_path / "corpora" / ".mine.abcdefgh").mkdir()
    embedded_corpus("library_code", tmp_path)
    assert not left.exists()
    assert (tmp_path / "corpora" / ".mine.abcdefgh").exists()


def test_a_build_that_fails_leaves_nothing(
    little: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(corpora: object, folder: Path) -> None:
        (folder / "stdlib_docs.jsonl").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write_corpora", half)
        with pytest.raises(SaeSweepError, match="no disk space left"):
            embedded_corpus("stdlib_docs", tmp_path)
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [".lock"]
    assert embedded_corpus("stdlib_docs", tmp_path).train == ["text of stdlib_docs"]
    assert len(little) == 2


def _flip(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])


@pytest.mark.parametrize("which", ["stdlib_docs.jsonl", "checksums.json"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        _flip,
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff\x00" * 99),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: file.write_bytes(b"[]"),
    ],
    ids=["gone", "one bit", "cut", "empty", "binary", "deep", "another value"],
)
def test_a_damaged_corpus_is_built_again(
    little: list[int],
    tmp_path: Path,
    damage: Callable[[Path], object],
    which: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = embedded_corpus("stdlib_docs", tmp_path)
    (folder,) = (path for path in (tmp_path / "corpora").iterdir() if path.is_dir())
    damage(folder / which)
    assert embedded_corpus("stdlib_docs", tmp_path) == before
    assert len(little) == 2
    assert f"{folder} is damaged, incomplete, or of an earlier version" in caplog.text
    assert embedded_corpus("library_code", tmp_path).train == ["text of library_code"]
    assert len(little) == 2


def test_a_disk_that_does_not_keep_what_is_written_is_one_clear_error(
    little: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_read_intact", lambda folder, name: None)
    with pytest.raises(SaeSweepError, match="stdlib_docs cannot be read back as it was written"):
        embedded_corpus("stdlib_docs", tmp_path)


def test_another_version_of_a_library_is_another_cache(little: list[int], tmp_path: Path) -> None:
    distributions = embedded.library_distributions()
    assert embedded._cache_key(distributions) != embedded._cache_key(distributions[1:])
