"""Figure 13: how many features of a layer are found in the layers before it, one triangle a k."""

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy import full, ma, nan

from sae_sweep.report.heatmap import grid, hatch_key, hatched, ink_on, plain_cell
from sae_sweep.report.style import FAINT, INK, new_figure
from sae_sweep.study.cells import FIGURE13_LAYERS
from sae_sweep.study.tables import CellResult, StudyTables
from sae_sweep.study.titles import title_with_setup
from sae_sweep.study.words import StudySetup

_COLOURS = "viridis"


def layer_figure(tables: StudyTables, setup: StudySetup) -> Figure:
    """Two triangles with one colour scale; cells without both runs are grey."""
    figure = new_figure(10.2, 5.3)
    panels = figure.subplots(1, len(tables.figure13))
    scale = _scale(result for results in tables.figure13.values() for result in results)
    image = None
    for axes, (k, results) in zip(panels, tables.figure13.items(), strict=True):
        image = _draw(axes, results, scale)
        axes.set_title(f"k = {k}", fontsize=10, color=INK)
    panels[0].set_ylabel("later layer, whose features are counted", fontsize=9, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), pad=0.015, fraction=0.03, aspect=30)
        bar.set_label(f"features with a match (%): best decoder cosine > {tables.threshold:g}", fontsize=8.5)
        bar.ax.tick_params(labelsize=8, length=3)
        bar.outline.set_visible(False)  # a spine; the stubs call it a property
    title_with_setup(figure, "Figure 13: features of a layer found in an earlier one", setup)
    _legend(figure, tables)
    return figure


def _scale(results: Iterable[CellResult]) -> Normalize:
    """From 0 to the largest value, rounded up to the next ten per cent."""
    largest = max((result.measured.ratio for result in results if result.measured is not None), default=0.0)
    return Normalize(0, max(10, 10 * math.ceil(10 * largest)))


def _draw(axes: Axes, results: Sequence[CellResult], scale: Normalize) -> AxesImage:
    layers = list(FIGURE13_LAYERS)
    rows, columns = layers[1:], layers[:-1]
    shares = full((len(rows), len(columns)), nan)
    for result in results:
        if result.measured is not None:
            row, column = rows.index(result.cell.counted.layer), columns.index(result.cell.sought_in.layer)
            shares[row, column] = 100 * result.measured.ratio
    image = axes.imshow(ma.masked_invalid(shares), cmap=_COLOURS, norm=scale)
    for result in results:
        row, column = rows.index(result.cell.counted.layer), columns.index(result.cell.sought_in.layer)
        _draw_cell(axes, row, column, result, image.cmap, scale)
    axes.set_xticks(range(len(columns)), [str(layer) for layer in columns], fontsize=8.5, color=INK)
    axes.set_yticks(range(len(rows)), [str(layer) for layer in rows], fontsize=8.5, color=INK)
    axes.set_xlabel("earlier layer, in which they are sought", fontsize=9, color=INK)
    grid(axes, len(rows), len(columns))
    return image


def _draw_cell(
    axes: Axes, row: int, column: int, result: CellResult, colours: Colormap, scale: Normalize
) -> None:
    if result.measured is None:
        axes.add_patch(plain_cell(column, row, facecolor=FAINT))
        return
    share = 100 * result.measured.ratio
    if result.undertrained:
        axes.add_patch(hatched(column, row, share, colours, scale))
    text = f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
    ink = ink_on(share, colours, scale)
    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)


def _legend(figure: Figure, tables: StudyTables) -> None:
    results = [result for each in tables.figure13.values() for result in each]
    keys = []
    if any(result.undertrained for result in results):
        text = (
            f"undertrained: more than {tables.undertrained_above:.0%} of the features of one of the two "
            "SAEs still match the dictionary it started from"
        )
        keys.append((hatch_key(), text))
    if any(result.measured is None for result in results):
        keys.append((plain_cell(0, 0, facecolor=FAINT), "a run is missing"))
    if keys:
        handles, texts = zip(*keys, strict=True)
        figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
