"""Markdown shows names as they are: a renderer finds nothing in them to obey."""

import pytest
from markdown_it import MarkdownIt

from sae_sweep.report.markdown import code, inline

EVIL = [
    "a|b", "`x`", "``", "a`", "<script>alert(1)</script>", "*bold*", "_it_", "__b__", "[x](http://a)",
    "&lt;", "&#60;", "a\\|b", "# head", "- item", "+ item", "1. item", "2) item", "=== x", "~~gone~~",
    "![x](y)", "<!-- x -->", "a\nb", "\x1b[31m", "\u202e", "$a$", "stdlib_docs", "0.5 of 1.5", "a & b",
    "plain, text; as (it) is: 3 - 4",
]  # fmt: skip


def rendered(text: str) -> str:
    """The text that a reader of the only cell of a table sees."""
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| a |\n| --- |\n| {text} |\n")
    )
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 2
    kinds = {child.type for child in cells[1].children or []}
    assert kinds <= {"text", "code_inline", "text_special"}
    return "".join(child.content for child in cells[1].children or [])


@pytest.mark.parametrize("text", EVIL)
def test_a_cell_shows_the_text(text: str) -> None:
    shown = text.replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert rendered(inline(text)) == shown
    assert rendered(code(text)) == shown


@pytest.mark.parametrize("text", EVIL)
def test_a_line_of_a_list_shows_the_text(text: str) -> None:
    for shown in (inline(text), code(text)):
        tokens = MarkdownIt("commonmark").parse(f"- {shown}\n")
        assert [token.type for token in tokens] == [
            *("bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close"),
            *("list_item_close", "bullet_list_close"),
        ]


def test_what_is_plain_stays_readable() -> None:
    for text in ("gpt2-pico_L2_stdlib_docs", "0.5 of 1.5", "a & b", "plain, text; as (it) is: 3 - 4"):
        assert inline(text) == text
    assert code("gpt2-pico_L2") == "`gpt2-pico_L2`"
