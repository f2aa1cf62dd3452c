"""The embedded corpora: text that every installation has on disk, read without a download.

`stdlib_docs` holds the docstrings of the running Python's standard library and its language reference
(`pydoc_data/topics.py`); `stdlib_code` holds the same sources without docstrings. `library_docs` and
`library_code` hold those of the libraries that sae_sweep depends on. Files are read, never imported.

No text is in two corpora or on both sides of a held-out split: see `drop_repeats`.
"""

import hashlib
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from xxhash import xxh3_128

from sae_sweep.config import EmbeddedDataset, SaeSweepError
from sae_sweep.store import lock_folder, read_json, regular, remove_partials, write_folder_atomic
from sae_sweep.text.python_files import Document, document_pair, drop_repeats, topic_documents
from sae_sweep.text.source import Place, TextSource

log = logging.getLogger(__name__)

EMBEDDED: tuple[str, ...] = ("stdlib_docs", "stdlib_code", "library_docs", "library_code")

CORPUS_VERSION = 1
"""Part of the cache key; increase it whenever the same files give other documents."""

LIBRARY_BYTES = 80_000_000
"""Largest number of library source bytes read, in order of the paths' hashes: limits the time of a build."""

MAX_FILE_BYTES = 300_000
"""Larger files are skipped: they are tables and generated code, not text that somebody wrote."""

TOPICS = "pydoc_data/topics.py"
"""Path of the language reference, a literal dictionary of topics: data rather than code."""

ROOTS = (
    "torch",
    "transformer-lens",
    "transformers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "lightning",
    "numpy",
    "pyarrow",
    "matplotlib",
    "safetensors",
    "filelock",
    "gguf",
    "jaxtyping",
    "packaging",
    "psutil",
    "submitit",
    "tqdm",
    "xxhash",
)
"""Direct requirements of sae-sweep, used in a checkout without installed metadata."""

_CHECKSUMS = "checksums.json"
"""XXH3-128 of each corpus, in its folder."""
_SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "__pycache__", "site-packages", "dist-packages"}


class Corpus(NamedTuple):
    """An embedded corpus, the same for every process of an installation."""

    name: str
    """One of `EMBEDDED`."""
    train: list[str]
    """Training documents sorted by path, one per source file or language-reference topic."""
    held_out: list[str]
    """Held-out documents, about 5% of all, chosen by the hash of their path."""
    fingerprint: str
    """16 hex digits of the SHA-256 over all documents and the split each is in."""


class EmbeddedText(TextSource):
    """An embedded corpus as a text source, with one document per unit."""

    def __init__(self, dataset: EmbeddedDataset, cache: Path) -> None:
        super().__init__(dataset.name, dataset.exhausted)
        self._corpus = embedded_corpus(dataset.name, cache)

    @staticmethod
    def fingerprint(dataset: EmbeddedDataset, cache: Path) -> str:
        return embedded_corpus(dataset.name, cache).fingerprint

    @property
    def units(self) -> int:
        return len(self._corpus.train)

    def read(self, unit: int, place: Place = None) -> Iterator[tuple[str, Place]]:
        if place is None:
            yield self._corpus.train[unit], 1

    def held_out(self) -> Iterator[str]:
        return iter(self._corpus.held_out)


def embedded_corpus(name: str, cache: Path) -> Corpus:
    """Return an embedded corpus; all four are built in `cache/corpora` if one is missing or damaged.

    Raises:
        SaeSweepError: if `name` is not one of `EMBEDDED`, or the cache cannot be written or read back.
    """
    if name not in EMBEDDED:
        raise SaeSweepError(f"unknown embedded corpus {name!r}: choose one of {', '.join(EMBEDDED)}")
    distributions = library_distributions()
    folder = cache / "corpora" / _cache_key(distributions)
    content = _read_intact(folder, name)
    if content is None:
        _build_once(distributions, folder)
        content = _read_intact(folder, name)
    if content is None:
        raise SaeSweepError(
            f"{folder}: {name} cannot be read back as it was written: set paths.cache elsewhere"
        )
    return _corpus(name, content)


def build_corpora(sources: Mapping[str, Iterable[tuple[str, str]]]) -> dict[str, list[Document]]:
    """Return the documents of all corpora, made from source files.

    Args:
        sources: pairs of (path relative to its root, text of the file), for each of "stdlib" and "library".
    """
    corpora: dict[str, list[Document]] = {name: [] for name in EMBEDDED}
    for origin, files in sources.items():
        for path, text in sorted(files):
            if origin == "stdlib" and path == TOPICS:
                corpora["stdlib_docs"].extend(topic_documents(path, text))
                continue
            docs, code = document_pair(path, text)
            corpora[f"{origin}_docs"].append(docs)
            corpora[f"{origin}_code"].append(code)
    return drop_repeats(corpora)


def installed_sources(distributions: Iterable[metadata.Distribution]) -> dict[str, list[tuple[str, str]]]:
    """Read the source files of the running Python's standard library and of `distributions`."""
    libraries: dict[str, Path] = {}
    for distribution in distributions:
        libraries.update(_distribution_sources(distribution))
    by_hash = sorted(libraries.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    return {"stdlib": list(_read(_stdlib_sources())), "library": list(_read(by_hash, LIBRARY_BYTES))}


def library_distributions() -> list[metadata.Distribution]:
    """Return the installed distributions that sae-sweep requires, directly or indirectly, sorted by name.

    Requirements of extras and those with markers that exclude this machine do not count. So development tools
    in the same environment do not change the corpora.
    """
    found: dict[str, metadata.Distribution] = {}
    pending = _root_names()
    while pending:
        name = pending.pop()
        distribution = _installed(name)
        if name in found or distribution is None:
            continue
        found[name] = distribution
        pending.extend(_requirement_names(distribution))
    return [found[name] for name in sorted(found)]


def _root_names() -> list[str]:
    own = _installed("sae-sweep")
    return list(ROOTS) if own is None else _requirement_names(own)


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _requirement_names(distribution: metadata.Distribution) -> list[str]:
    requirements = map(Requirement, distribution.requires or ())
    return [
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _is_included(path: PurePosixPath) -> bool:
    generated = path.name.endswith("_pb2.py") or path.name.startswith("_sysconfigdata")
    return path.suffix == ".py" and not generated and _SKIPPED_FOLDERS.isdisjoint(path.parts)


def _distribution_sources(distribution: metadata.Distribution) -> Iterator[tuple[str, Path]]:
    for file in distribution.files or ():
        if ".." not in file.parts and _is_included(file):
            yield file.as_posix(), Path(str(distribution.locate_file(file)))


def _stdlib_sources() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            relative = PurePosixPath((Path(folder) / name).relative_to(root).as_posix())
            if _is_included(relative):
                yield str(relative), Path(folder) / name


def _read(files: Iterable[tuple[str, Path]], max_bytes: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of files that are UTF-8 and not too large, up to `max_bytes` in total."""
    total = 0
    for relative, path in files:
        if not path.is_file() or (path.stat().st_size > MAX_FILE_BYTES and relative != TOPICS):
            continue
        raw = path.read_bytes()
        total += len(raw)
        if max_bytes is not None and total > max_bytes:
            return
        try:
            yield relative, raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue


def _cache_key(distributions: Iterable[metadata.Distribution]) -> str:
    versions = sorted((canonicalize_name(d.name), d.version) for d in distributions)
    parts = [CORPUS_VERSION, LIBRARY_BYTES, MAX_FILE_BYTES, list(sys.version_info[:3]), versions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build_once(distributions: Iterable[metadata.Distribution], folder: Path) -> None:
    """Build `folder` unless it is intact; one process builds it while others wait."""
    with lock_folder(folder.parent):
        if all(_read_intact(folder, name) is not None for name in EMBEDDED):
            return
        remove_partials(folder.parent)
        if folder.exists():
            log.warning("%s is damaged, incomplete, or of an earlier version", folder)
        log.info("building the embedded corpora (about a minute, once per installation) in %s", folder)
        corpora = build_corpora(installed_sources(distributions))
        write_folder_atomic(folder, lambda part: _write_corpora(corpora, part))


def _write_corpora(corpora: Mapping[str, list[Document]], folder: Path) -> None:
    checksums = {}
    for name, documents in corpora.items():
        content = "".join(json.dumps(document._asdict()) + "\n" for document in documents).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        checksums[name] = xxh3_128(content).hexdigest()
    (folder / _CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")


def _read_intact(folder: Path, name: str) -> bytes | None:
    """Read the file of a corpus; None if it or its checksum is missing, damaged or unreadable."""
    try:
        checksums = read_json(folder / _CHECKSUMS)
        content = regular(folder / f"{name}.jsonl").read_bytes()
    except (OSError, SaeSweepError):
        return None
    known = checksums.get(name) if isinstance(checksums, dict) else None
    return content if known == xxh3_128(content).hexdigest() else None


def _corpus(name: str, content: bytes) -> Corpus:
    documents = [Document(**json.loads(line)) for line in content.splitlines()]
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.held_out, document.text]).encode())
    train = [document.text for document in documents if not document.held_out]
    held_out = [document.text for document in documents if document.held_out]
    return Corpus(name, train, held_out, digest.hexdigest()[:16])
