"""Rows of a local text: bytes and strings made clean text, and a count of what was skipped and replaced."""

import codecs
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sae_sweep.config import SaeSweepError
from sae_sweep.text.found import EMPTY

_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks of encodings other than UTF-8; that of UTF-32 begins like that of UTF-16."""
_MARK = "\ufeff"
_LONE = re.compile("[\ud800-\udfff]")
_INVALID = "sae_sweep.invalid"
_BROKEN, _BROKEN_SHARE = 100, 0.2
"""Invalid characters, and their share, above which a file is no text: a binary file or another encoding."""

codecs.register_error(_INVALID, lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]


class Row(NamedTuple):
    """A document, or the lack of one."""

    text: str | None
    """Empty for an empty row, None for a null."""
    replaced: int = 0
    """Number of invalid characters and lone surrogates that U+FFFD stands for."""
    reread: bool = False
    """Whether version 0.1.0 read it otherwise."""


@dataclass
class Tally:
    """What files hold."""

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of rows and files without text, by reason."""
    replaced: int = 0
    nulls: int = 0
    """NUL characters, of which text has none."""
    characters: int = 0
    reread: int = 0
    """Rows that version 0.1.0 read otherwise: texts that have any have another fingerprint than in it."""

    def add(self, row: Row) -> bool:
        """Count a row; returns whether it is a document."""
        self.reread += row.reread
        if not row.text:
            self.skipped["null rows" if row.text is None else "empty rows"] += 1
            return False
        self.documents += 1
        self.replaced += row.replaced
        self.nulls += row.text.count("\0")
        self.characters += len(row.text)
        return True

    def add_file(self, path: Path, tally: "Tally", key: str = "dataset.path") -> None:
        """Add what a file holds, which the key of a config names.

        Raises:
            SaeSweepError: if that is no text.
        """
        broken, most = tally.replaced + tally.nulls, _BROKEN_SHARE * tally.characters
        if broken > max(_BROKEN, most) or tally.nulls > most:
            raise SaeSweepError(
                f"{path} is not UTF-8 text: {broken:,} of {tally.characters:,} characters are invalid; "
                f"convert it (iconv -f ENCODING -t UTF-8), or leave it out of {key}"
            )
        self.documents += tally.documents
        self.replaced += tally.replaced
        self.skipped.update(tally.skipped)
        if not tally.documents:
            self.skipped[EMPTY] += 1


def text_row(raw: bytes) -> Row:
    """The document that a whole file holds, with line ends as \\n."""
    encoding = next((name for mark, name in _WIDE if raw.startswith(mark)), "utf-8")
    return _row(raw.decode(encoding, errors=_INVALID).replace("\r\n", "\n").replace("\r", "\n"))


def json_row(line: bytes, key: str, where: str) -> Row:
    """The document that a line of JSON holds under `key`.

    Raises:
        SaeSweepError: if it is none, naming `where` the line is.
    """
    wide = next((name.upper() for mark, name in _WIDE if line.startswith(mark)), None)
    if wide:
        raise SaeSweepError(f"{where}: it is not UTF-8 but {wide}: convert it (iconv -f {wide} -t UTF-8)")
    text = line.decode("utf-8-sig", errors=_INVALID).rstrip("\r\n")
    if not text.strip():
        return Row("")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SaeSweepError(f"{where}: not a line of JSON ({_problem(error)})") from error
    if not isinstance(row, dict) or key not in row:
        raise SaeSweepError(f"{where}: no key {key!r}: set dataset.text_key to the key that holds the text")
    value = row[key]
    if not isinstance(value, str | None):
        raise no_text(where, key, value)
    return Row(None) if value is None else _row(value)


def no_text(where: str, key: str, value: object) -> SaeSweepError:
    """An error for a value that should be a document, naming `where` it is."""
    if isinstance(value, list) and all(type(one) is int for one in value):
        return token_ids(where, key)
    return SaeSweepError(
        f"{where}: {key!r} holds {type(value).__name__}, not text: set dataset.text_key to another"
    )


def token_ids(where: str, key: str) -> SaeSweepError:
    """An error for text that another tokenizer has made numbers of."""
    return SaeSweepError(
        f"{where}: {key!r} holds token ids, which mean nothing to another tokenizer: decode them with the "
        "one that made them, or set dataset.text_key to what holds the text"
    )


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):  # its own message counts lines within this one
        return f"{error.msg} at column {error.colno}"
    return str(error)


def column_row(value: bytes | None) -> Row:
    """The document that a cell of a text column holds."""
    if value is None:
        return Row(None)
    row = _row(value.decode(errors=_INVALID))
    return row if row.text or not value else row._replace(reread=True)


def _row(text: str) -> Row:
    """Leave out byte-order marks and blank texts, and replace what no text has: lone surrogates.

    Those that `_INVALID` put there stand for bytes that are not UTF-8.
    """
    marked = text.startswith(_MARK)
    text = text.lstrip(_MARK)
    if not text.strip():
        return Row("", reread=marked)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Row(*_LONE.subn("\ufffd", text), marked)
    return Row(text, reread=marked)
