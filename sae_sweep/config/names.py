"""Names and other text from outside: what may name a folder, and how text is shown."""

import re

LONGEST_NAME = 120
"""Bytes, also of a run's name; file systems allow 255, and markers beside a folder need some."""
_SEPARATORS = {"/", "\\"}
_FILE_SUFFIXES = {
    *(".txt", ".md", ".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gguf", ".safetensors", ".bin", ".pt"),
    *(".gz", ".zst", ".bz2", ".xz", ".zip"),
}


def without_suffix(name: str) -> str:
    """A file's name without what says how it is stored: `a.jsonl.gz` -> `a`; `Llama-3.2-1B` stays."""
    stem, dot, suffix = name.rpartition(".")
    return without_suffix(stem) if stem and f"{dot}{suffix.lower()}" in _FILE_SUFFIXES else name


def made_plain(text: str) -> str:
    """The name closest to `text` that `plain_name` allows, whatever its length; empty if nothing is left."""
    kept = "".join(c if c.isprintable() and c not in _SEPARATORS else "-" for c in text)
    return kept.strip().lstrip(".- ")


def unquoted(text: str) -> str:
    """Text as part of a name that no shell needs quoted: what a shell would interpret becomes `-`."""
    return re.sub(r"[^\w.,:=@%+-]+", "-", text).strip("-")


def escaped(text: object) -> str:
    r"""Text as one line that a terminal shows and does not obey: `\n` and `\x1b` become visible.

    So does all that Unicode does not count as printable: marks that reorder text, unusual spaces, and the
    surrogates that stand for the bytes of undecodable file names.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in shown
    )


def escaped_lines(text: str) -> str:
    """Text like `escaped`, with its line breaks."""
    return "\n".join(map(escaped, text.split("\n")))


def plain_name(problems: list[str], key: str, name: str | None) -> None:
    """Append a line to `problems` if `name` could lead out of a folder, hide in it, or pass for an option."""
    if name is None:
        return
    if not name.strip():
        wrong = "is empty"
    elif name != name.strip() or not name.isprintable() or set(name) & _SEPARATORS:
        wrong = "has a separator, a control character, or space at an end"
    elif name[0] in ".-":
        wrong = f"begins with {name[0]}"
    elif len(name.encode()) > LONGEST_NAME:
        wrong = f"is longer than {LONGEST_NAME} bytes"
    else:
        return
    problems.append(f"{key}={escaped(name)} {wrong}: it must be a plain name")
