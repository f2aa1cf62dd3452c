"""The matching matrix as a page: every cell with its words, and nothing from outside that is obeyed."""

import dataclasses
from html.parser import HTMLParser

from sae_sweep.analysis import Comparison
from sae_sweep.report.heat_map import heat_map


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append(dict(attrs))


def cells(comparison: Comparison) -> Cells:
    found = Cells()
    found.feed(heat_map(comparison))
    return found


def test_each_cell_says_what_it_is(comparison: Comparison) -> None:
    count = len(comparison.names)
    found = cells(comparison).cells
    assert len(found) == count * (count + 1)
    first = found[1]
    share = comparison.ratios[0, 1]
    a, b = comparison.names[:2]
    assert first["data-v"] == f"{share:.6f}"
    assert first["title"] == (
        f"{share:.1%} of the features of {a} have a match in {b}, of which one still matches its start"
    )
    assert "title" not in found[0]  # the diagonal
    assert sum(cell.get("class") == "u" for cell in found) == 7  # one of four is undertrained, its start too
    assert "match what it started from" in str(found[count]["title"])


def test_a_name_is_shown_and_not_obeyed(comparison: Comparison) -> None:
    names = ("<script>x</script>", '"><b>', "c\x1b", "d")
    found = cells(dataclasses.replace(comparison, names=names, keys=({},) * 4))
    assert "b" not in found.tags
    assert heat_map(dataclasses.replace(comparison, names=names)).count("<script>") == 1
    assert "\x1b" not in heat_map(dataclasses.replace(comparison, names=names))
