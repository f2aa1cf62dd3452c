"""Look of all figures and heat maps, and how they are saved."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from sae_sweep.store import write_bytes

INK, MUTED, FAINT = "#1a1a1a", "#6b6b6b", "#e4e4e4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's colours, distinct for colour-blind readers too; grey is reserved for `several`."""
_DPI = 200
_HATCH = "////"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; without pyplot, so nothing is global and nothing has to be closed."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes) -> None:
    """Remove the box, shorten the ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK, length=3)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG atomically."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=_DPI, facecolor="white")
    write_bytes(path, image.getvalue())
    return path


def cell_patch(column: int, row: int, **style: object) -> Rectangle:
    """One cell as a patch."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, **style)  # type: ignore[arg-type]


def hatched(column: int, row: int, value: float, colours: Colormap, scale: Normalize) -> Rectangle:
    """Hatching over a cell of this value."""
    return cell_patch(
        column, row, fill=False, hatch=_HATCH, edgecolor=ink_on(value, colours, scale), alpha=0.35
    )


def hatch_key() -> Patch:
    """Hatching for a legend."""
    return Patch(facecolor="white", edgecolor=MUTED, hatch=_HATCH, linewidth=0.5)


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
