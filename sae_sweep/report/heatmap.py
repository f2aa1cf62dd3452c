"""The cells of a heat map: numbers that can be read on any colour, hatches, thin lines between them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch, Rectangle

from sae_sweep.report.style import INK, MUTED

_HATCH = "////"


def plain_cell(column: int, row: int, **style: object) -> Rectangle:
    """One cell as a patch."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, **style)  # type: ignore[arg-type]


def hatched(column: int, row: int, value: float, colours: Colormap, scale: Normalize) -> Rectangle:
    """Hatches over a cell of this value."""
    return plain_cell(
        column, row, fill=False, hatch=_HATCH, edgecolor=ink_on(value, colours, scale), alpha=0.35
    )


def hatch_key() -> Patch:
    """The same hatches for a legend."""
    return Patch(facecolor="white", edgecolor=MUTED, hatch=_HATCH, linewidth=0.5)


def ink_on(value: float, colours: Colormap, scale: Normalize) -> str:
    """White on dark cells, black on light ones (relative luminance of the cell)."""
    red, green, blue, _ = colours(scale(value))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK


def grid(axes: Axes, rows: int, columns: int) -> None:
    """Thin white lines between the cells, no frame."""
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
