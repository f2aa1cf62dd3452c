"""Reads the code blocks of README and of the pages of docs/, with marks that the pages do not show.

A comment of HTML directly above a block marks it: `<!-- key: value; key: value -->`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

_MARK = re.compile(r"<!--\s*(\w+:.*?)\s*-->", re.DOTALL)


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    line: int
    language: str
    """Its info string; empty for an indented block."""
    text: str
    marks: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command of a shell block, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page, in order; directives of Sphinx are left out."""
    marks: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            yield Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content, marks)
        found = _MARK.fullmatch(token.content.strip()) if token.type == "html_block" else None
        marks = dict(one.split(": ", 1) for one in found[1].split("; ")) if found else {}


def all_blocks() -> list[Block]:
    """The code blocks of all pages."""
    return [block for page in PAGES if page.exists() for block in blocks(page)]
