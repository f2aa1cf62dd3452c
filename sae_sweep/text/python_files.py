"""Makes documents from Python source files: docstrings, code without them, and no text twice."""

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MIN_DOCUMENT_CHARS = 200
"""Shorter documents are dropped: a one-line docstring says little out of context."""

MIN_BLOCK_CHARS = 80
"""Shorter blocks, with whitespace normalised, may repeat: they recur by chance."""

HELD_OUT_SHARE = 0.05
"""Share of paths that are held out."""

_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")


class Document(NamedTuple):
    """One document of a corpus."""

    path: str
    """Path relative to the import root, or `file#topic` for a topic of the language reference."""
    text: str
    held_out: bool


def is_held_out(path: str) -> bool:
    """Return whether a path is held out, by its hash alone, so that other installed files do not matter.

    The last bytes of the hash are used, because the first bytes order the files that a build reads.
    """
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[-8:], "big") < HELD_OUT_SHARE * 2**64


def document_pair(path: str, source: str) -> tuple[Document, Document]:
    """Return the docstrings of a source file and its code without them, both empty if it does not parse."""
    held_out = is_held_out(path)
    strings = _docstring_nodes(source)
    if strings is None:
        return Document(path, "", held_out), Document(path, "", held_out)
    docs = "\n\n".join(inspect.cleandoc(str(node.value)) for node in strings)
    return Document(path, docs, held_out), Document(path, _without(source, strings), held_out)


def topic_documents(path: str, source: str) -> list[Document]:
    """Return one document per topic of the language reference, the dictionary `topics` in `source`."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value and any(isinstance(target, ast.Name) and target.id == "topics" for target in targets):
            topics = ast.literal_eval(value)
            names = {topic: f"{path}#{topic}" for topic in sorted(topics)}
            return [Document(name, topics[topic], is_held_out(name)) for topic, name in names.items()]
    return []


def drop_repeats(corpora: Mapping[str, list[Document]]) -> dict[str, list[Document]]:
    """Drop repeated blocks (text between blank lines), then the documents that became too short.

    The training documents of all corpora come first, in the mapping's order, then the held-out documents. So
    no held-out block is in any training document, and training text loses nothing to held-out text.
    """
    seen: set[bytes] = set()
    kept: dict[str, list[Document]] = {}
    for held_out in (False, True):
        for name, documents in corpora.items():
            side = [document for document in documents if document.held_out is held_out]
            kept.setdefault(name, []).extend(_fresh_documents(side, seen))
    return kept


def _fresh_documents(documents: list[Document], seen: set[bytes]) -> Iterator[Document]:
    for document in documents:
        text = _fresh_blocks(document.text, seen).strip()
        if len(text) >= MIN_DOCUMENT_CHARS:
            yield document._replace(text=text)


def _fresh_blocks(text: str, seen: set[bytes]) -> str:
    """Return `text` without the blocks in `seen`, and add its own blocks to `seen`."""
    pieces = [*_BLANK_LINES.split(text.strip("\n")), ""]
    kept = []
    for block, separator in zip(pieces[::2], pieces[1::2], strict=True):
        normal = " ".join(block.split())
        key = hashlib.blake2b(normal.encode(), digest_size=16).digest()
        if len(normal) < MIN_BLOCK_CHARS or key not in seen:
            kept.append(block + separator)
            seen.add(key)
    return "".join(kept)


def _docstring_nodes(source: str) -> list[ast.Constant] | None:
    """Return the docstring nodes of a source in source order, or None if it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    found = [node for node in map(_docstring, ast.walk(tree)) if node is not None]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _docstring(node: ast.AST) -> ast.Constant | None:
    """Return the docstring node of a module, class or function; None if `node` has none."""
    if (
        not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        or not node.body
    ):
        return None
    value = getattr(node.body[0], "value", None) if isinstance(node.body[0], ast.Expr) else None
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _without(source: str, strings: list[ast.Constant]) -> str:
    """Remove the spans of `strings` from `source`, and the lines that become empty."""
    lines = source.encode().split(b"\n")  # the columns of ast count bytes
    for node in reversed(strings):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rest = lines[first][: node.col_offset] + lines[last][node.end_col_offset :]
        lines[first : last + 1] = [rest] if rest.strip() else []
    return b"\n".join(lines).decode()
