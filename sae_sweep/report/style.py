"""Look of all figures and heat maps, and how they are saved."""

import math
import warnings
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import Formatter

from sae_sweep.config import escaped_lines
from sae_sweep.store import write_bytes

INK, MUTED, FAINT = "#1a1a1a", "#6b6b6b", "#e4e4e4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's colours, distinct for colour-blind readers too; grey is reserved for `several`."""
_DPI = 200
_HATCH = "////"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WITHIN_ONE, _NARROW = 0.6, 2.2
"""Powers of ten that a log axis spans, below which all ticks have labels, or those of 2 and 5 as well."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; without pyplot, so nothing is global and nothing has to be closed."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes) -> None:
    """Remove the box, shorten the ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.tick_params(length=3)


class _LogLabels(Formatter):
    """Labels of a log axis without mathematical markup, which `save` shows as it is."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        del pos
        if x <= 0:
            return ""
        low, high = sorted(cast(Axis, self.axis).get_view_interval())
        powers = math.log10(high / low) if low > 0 else math.inf
        exponent = math.floor(math.log10(x) + 1e-9)
        digit = round(x / 10**exponent)
        if powers < _WITHIN_ONE:
            return f"{x:.3g}"
        if digit != 1 and (digit not in (2, 5) or powers > _NARROW):
            return ""
        return f"{x:g}" if -2 <= exponent <= 2 else digit_and_power(digit, exponent)


def log_scale(axis: Axis) -> None:
    """Make an axis logarithmic; what is not above 0 is not drawn."""
    change = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    change("log", nonpositive="mask")
    axis.set_major_formatter(_LogLabels())
    axis.set_minor_formatter(_LogLabels())


def give_empty_log_axes_a_range(figure: Figure) -> None:
    """Give log axes a range on which nothing is drawn, neither here nor on axes that share them."""
    for axes in figure.axes:
        x, y = axes.get_shared_x_axes().get_siblings(axes), axes.get_shared_y_axes().get_siblings(axes)
        if axes.get_xscale() == "log" and all(math.isinf(one.xaxis.get_minpos()) for one in x):
            axes.set_xlim(0.1, 10)
        if axes.get_yscale() == "log" and all(math.isinf(one.yaxis.get_minpos()) for one in y):
            axes.set_ylim(0.1, 10)


def power_of_ten(exponent: float) -> str:
    """`-3` -> `10⁻³`."""
    return f"10{f'{exponent:.0f}'.translate(_SUPERSCRIPTS)}" if exponent else "1"


def digit_and_power(digit: int, exponent: int) -> str:
    """`2, -3` -> `2·10⁻³`."""
    return power_of_ten(exponent) if digit == 1 else f"{digit}·{power_of_ten(exponent)}"


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG or an SVG, as the ending of `path` says, atomically; equal figures give equal bytes."""
    image, kind = BytesIO(), path.suffix.lstrip(".")
    _show_text_as_it_is(figure)
    metadata = {"Date": None} if kind == "svg" else {}
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": path.stem}):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
        figure.savefig(image, format=kind, dpi=_DPI, facecolor="white", metadata=metadata)
    write_bytes(path, image.getvalue())
    return path


def _show_text_as_it_is(figure: Figure) -> None:
    """Take no `$` in a name for a formula, and obey no control character but a line break."""
    for text in cast(list[Text], figure.findobj(Text)):
        text.set_parse_math(False)
        if not text.get_text().isprintable():
            text.set_text(escaped_lines(text.get_text()))


def cell_patch(column: int, row: int, **style: object) -> Rectangle:
    """One cell as a patch."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, **style)  # type: ignore[arg-type]


def hatched(column: int, row: int, value: float, colours: Colormap, scale: Normalize) -> Rectangle:
    """Hatching over a cell of this value."""
    return cell_patch(
        column, row, fill=False, hatch=_HATCH, edgecolor=ink_on(value, colours, scale), alpha=0.35
    )


def hatch_key(label: str) -> Patch:
    """Hatching for a legend."""
    return Patch(facecolor="white", edgecolor=MUTED, hatch=_HATCH, linewidth=0.5, label=label)


def text_key(text: str) -> Line2D:
    """An entry of a legend that is text only."""
    return Line2D([], [], linestyle="", label=text)


def ink_on(value: float, colours: Colormap, scale: Normalize) -> str:
    """Text colour on a cell: white if it is dark, black if it is light (by relative luminance)."""
    red, green, blue, _ = colours(scale(value))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK


def grid(axes: Axes, rows: int, columns: int) -> None:
    """Thin white lines between the cells, no frame."""
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
