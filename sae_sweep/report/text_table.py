"""Aligned columns of plain text."""

from collections.abc import Collection, Sequence

from sae_sweep.report.labels import shorten

_GAP = "  "
_NARROWEST = 8


class TextTable:
    """A table whose columns are as wide as their longest cell."""

    def __init__(self, heads: Sequence[str], left: Collection[int] = ()) -> None:
        """`left`: columns that are aligned to the left; the others are numbers."""
        self._heads = list(heads)
        self._left = set(left)
        self._rows: list[list[str]] = []

    def add(self, cells: Sequence[str]) -> None:
        self._rows.append(list(cells))

    def rename(self, names: Sequence[str]) -> None:
        """Put other cells into the first column."""
        for row, name in zip(self._rows, names, strict=True):
            row[0] = name

    @property
    def width(self) -> int:
        return self._total(range(len(self._heads)))

    def lines(self, width: int, drop: Sequence[int] = ()) -> list[str]:
        """Head, rule and rows, none longer than `width`.

        Where they would be, the columns in `drop` go, one by one, then the first gives way, then line ends.
        """
        kept = list(range(len(self._heads)))
        for column in drop:
            if self._total(kept) > width:
                kept.remove(column)
        widths = self._widths()
        widths[0] -= max(0, min(self._total(kept) - width, widths[0] - _NARROWEST))
        lines = [self._line(row, kept, widths) for row in (self._heads, *self._rows)]
        rule = "-" * min(width, sum(widths[column] for column in kept) + len(_GAP) * (len(kept) - 1))
        return [line[:width] for line in (lines[0], rule, *lines[1:])]

    def _total(self, kept: Sequence[int]) -> int:
        widths = self._widths()
        return sum(widths[column] for column in kept) + len(_GAP) * (len(kept) - 1)

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self._heads, *self._rows, strict=True)]

    def _line(self, cells: Sequence[str], kept: Sequence[int], widths: Sequence[int]) -> str:
        return _GAP.join(self._cell(cells[column], column, widths[column]) for column in kept).rstrip()

    def _cell(self, text: str, column: int, width: int) -> str:
        fitted = shorten(text, width)
        return fitted.ljust(width) if column in self._left else fitted.rjust(width)
