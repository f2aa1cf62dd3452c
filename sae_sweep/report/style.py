"""How all figures look, and how they get to disk."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_sweep.store import write_atomic

INK, MUTED, FAINT = "#1a1a1a", "#6b6b6b", "#e4e4e4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's colours, told apart by colour-blind readers too; grey is kept for `several`."""
_DPI = 200


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; without pyplot, so nothing is global and nothing has to be closed."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes) -> None:
    """No box, quiet ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK, length=3)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, complete or not at all."""
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=_DPI, facecolor="white"))
    return path
