"""The study's figures: Tables 1 and 2 and Figure 1 as dot plots, Figure 13 as heat maps.

Every title says what stands in for the study's model and text.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy import full, ma, nan

from sae_sweep.report.formatting import mixed_note
from sae_sweep.report.style import (
    FAINT,
    INK,
    MUTED,
    SERIES,
    cell_patch,
    grid,
    hatch_key,
    hatched,
    ink_on,
    new_figure,
    text_key,
    tidy,
)
from sae_sweep.study.cells import FIGURE13_LAYERS
from sae_sweep.study.labels import BLOCKS, MIXED, UNDERTRAINED, Marked, StudySetup, marks, row_label, short
from sae_sweep.study.published import published
from sae_sweep.study.tables import CellResult, Setting, StudyTables

_COLOURS = {"owt": SERIES[0], "tinystories": SERIES[1], "": SERIES[2]}
"""Colours per column; "" stands for cells that compare two datasets."""
_SHIFT = {"owt": -0.17, "tinystories": 0.17, "": 0.0}
"""Vertical shift of the two datasets within a row, so that their intervals do not overlap."""
_LINE_IN = 0.235
"""Height of a row in inches."""
_NOTE_CHARACTERS = 60
"""Width of a note below a figure."""
_CHARACTERS_PER_INCH = 15
"""Width of the title's text."""


def table1_figure(tables: StudyTables, setup: StudySetup) -> Figure:
    """Table 1, one line per row; the two datasets above each other, in their colours."""
    lines = _lines(tables.table1)
    figure = new_figure(7.0, _LINE_IN * len(lines) + 1.5)
    axes = figure.subplots()
    for y, (heading, results) in enumerate(lines):
        if heading:
            continue
        axes.axhline(y, color=FAINT, linewidth=0.7, zorder=0)
        for result in results:
            _draw_cell(axes, y, result)
    _label_lines(axes, [heading or short(row_label(results[0].cell)) for heading, results in lines])
    for tick, (heading, _) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if heading else "normal")
    axes.set_xlim(-1.5, 101.5)  # a dot at either end is drawn whole
    axes.set_xlabel(f"features with a match (%): best decoder cosine > {tables.threshold:g}", fontsize=9)
    _title(figure, "Table 1: how much of one SAE is found in another", setup)
    key = [_dataset_key(column, setup) for column in ("owt", "tinystories", "")]
    _legend(figure, [*key, *_measured_and_published()], tables, tables.table1)
    return figure


def _lines(results: Sequence[CellResult]) -> list[tuple[str, list[CellResult]]]:
    """Headings and rows from top to bottom; a row holds one or two cells."""
    lines: list[tuple[str, list[CellResult]]] = []
    rows: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        rows.setdefault((result.cell.block, result.cell.row), []).append(result)
    blocks: set[str] = set()
    for (block, _), cells in rows.items():
        if block not in blocks:
            blocks.add(block)
            lines.append((BLOCKS[block], []))
        lines.append(("", cells))
    return lines


def _draw_cell(axes: Axes, y: float, result: CellResult) -> None:
    cell, measured = result.cell, result.measured
    y += _SHIFT[cell.column]
    colour = _COLOURS[cell.column]
    if cell.published is not None:
        _hollow(axes, cell.published, y, colour)
    if measured is None:
        return
    axes.hlines(y, 100 * measured.low, 100 * measured.high, color=colour, linewidth=1.4)
    axes.plot(100 * measured.ratio, y, "o", color=colour, markersize=4.5, markeredgewidth=0)
    _mark(axes, 100 * measured.high, y, colour, result)


def table2_figure(tables: StudyTables, setup: StudySetup) -> Figure:
    """Table 2 in per cent of the small dictionary, which can be compared between models of any width."""
    base = published().baseline.d_in
    rows = list(dict.fromkeys(row.row for row in tables.table2))
    figure = new_figure(7.0, 0.55 * len(rows) + 1.75)
    axes = figure.subplots()
    for row in tables.table2:
        small = int(row.row.split("-")[0])
        y, colour = rows.index(row.row) + _SHIFT[row.column], _COLOURS[row.column]
        _hollow(axes, 100 * row.printed / small, y, colour)
        axes.plot(100 * row.recomputed / small, y, "|", color=colour, markersize=9, markeredgewidth=1.4)
        if row.measured is None:
            continue
        scale = 100 / row.measured.small
        low, high = scale * row.measured.low, scale * row.measured.high
        axes.hlines(y, low, high, color=colour, linewidth=1.4)
        axes.plot(scale * row.measured.features, y, "o", color=colour, markersize=4.5, markeredgewidth=0)
        _mark(axes, high, y, colour, row)
    sizes = [[int(size) // base for size in row.split("-")] for row in rows]
    _label_lines(axes, [f"x{small} and x{large}" for small, large in sizes])
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("surplus of matched features, % of the small dictionary", fontsize=9, color=INK)
    _title(figure, "Table 2: matched features of the large dictionary beyond those of the small", setup)
    follows = Line2D([], [], color=MUTED, marker="|", linestyle="", markersize=9, markeredgewidth=1.4)
    follows.set_label("what follows from the published Table 1")
    handles = [*(_dataset_key(column, setup) for column in ("owt", "tinystories")), follows]
    handles += _measured_and_published()
    _legend(figure, handles, tables, tables.table2)
    return figure


def figure1(tables: StudyTables, setup: StudySetup) -> Figure:
    """Figure 1: settings, the one that moves features most first; a dot per cell, a bar per mean."""
    settings = tables.settings
    figure = new_figure(7.0, 0.62 * len(settings) + 1.6)
    axes = figure.subplots()
    for y, setting in enumerate(settings):
        axes.axhline(y, color=FAINT, linewidth=0.7, zorder=0)
        _draw_setting(axes, y, setting)
    _label_lines(axes, [_setting_label(setting) for setting in settings])
    axes.set_xlim(-1.5, 101.5)  # a dot at either end is drawn whole
    axes.set_xlabel("matching ratio (%)", fontsize=9, color=INK)
    _title(figure, "Which setting moves the features most (lowest ratio first)", setup)
    means = [
        _key("mean of the measured cells", "|", SERIES[0], filled=True, size=9),
        _key("mean of the same cells as published", "|", SERIES[1], filled=True, size=9),
    ]
    cells = [_key("a cell, measured", "o", SERIES[0], filled=True), _key("a cell, published", "o", SERIES[1])]
    _legend(figure, [*cells, *means], tables, settings)
    return figure


def _draw_setting(axes: Axes, y: float, setting: Setting) -> None:
    """Measured above the line, published below it."""
    up, down = y - 0.16, y + 0.16
    for result in setting.cells:
        if result.cell.published is not None:
            _hollow(axes, result.cell.published, down, SERIES[1])
        if result.measured is not None:
            axes.plot(
                100 * result.measured.ratio, up, "o", color=SERIES[0], markersize=4.5, alpha=0.65, mew=0
            )
    axes.plot(setting.published, down, "|", color=SERIES[1], markersize=15, markeredgewidth=2.2)
    if setting.measured is not None:
        axes.plot(setting.measured, up, "|", color=SERIES[0], markersize=15, markeredgewidth=2.2)


def _setting_label(setting: Setting) -> str:
    there = sum(result.measured is not None for result in setting.cells)
    counts = {UNDERTRAINED: setting.undertrained, MIXED: setting.mixed}
    marked = "".join(f", {count} {mark}" for mark, count in counts.items() if count)
    return f"{setting.name}\n{there} of {len(setting.cells)} cells{marked}"


def _hollow(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot(x, y, "o", markerfacecolor="white", markeredgecolor=colour, markersize=6, mew=1.1, zorder=1.5)


def _mark(axes: Axes, x: float, y: float, colour: str, result: Marked) -> None:
    """Draw the marks of a result, if any, to the right of a point."""
    if text := marks(result):
        axes.annotate(
            text, (x, y), (3, 0), textcoords="offset points", fontsize=7.5, color=colour, va="center"
        )


def _label_lines(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.7)
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8.5)


def _dataset_key(column: str, setup: StudySetup) -> Artist:
    label = setup.text(column) if column else "two datasets"
    return _key(label, "s", _COLOURS[column], filled=True)


def _measured_and_published() -> list[Artist]:
    measured = Line2D([], [], color=MUTED, marker="o", markersize=4.5, linewidth=1.4)
    measured.set_label("measured, 95 % interval over features")
    return [measured, _key("published", "o", MUTED)]


def _key(label: str, marker: str, colour: str, *, filled: bool = False, size: float = 5.5) -> Artist:
    return Line2D(
        [], [], linestyle="", marker=marker, markersize=size, color=colour, label=label,
        markerfacecolor=colour if filled else "white", markeredgewidth=2.2 if marker == "|" else 1.1,
    )  # fmt: skip


def _legend(
    figure: Figure, handles: Sequence[Artist], tables: StudyTables, results: Sequence[Marked]
) -> None:
    handles = list(handles)
    if any(result.undertrained for result in results):
        text = f"{UNDERTRAINED}: over {tables.undertrained_above:.0%} of an SAE still matches its own start"
        handles.append(text_key(text))
    handles += _mixed_key(results)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _mixed_key(results: Iterable[Marked]) -> list[Line2D]:
    """The note on mixed runs for a legend, if any result has one."""
    mixed = any(result.mixed for result in results)
    return [text_key(textwrap.fill(mixed_note(MIXED), _NOTE_CHARACTERS))] if mixed else []


def figure13(tables: StudyTables, setup: StudySetup) -> Figure:
    """Figure 13: a triangle of layers per k, with one colour scale; cells without both runs are grey."""
    figure = new_figure(10.2, 5.3)
    panels = figure.subplots(1, len(tables.figure13))
    scale = _scale(result for results in tables.figure13.values() for result in results)
    image = None
    for axes, (k, results) in zip(panels, tables.figure13.items(), strict=True):
        image = _draw_layers(axes, results, scale)
        axes.set_title(f"k = {k}", fontsize=10, color=INK)
    panels[0].set_ylabel("later layer, whose features are counted", fontsize=9, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), pad=0.015, fraction=0.03, aspect=30)
        bar.set_label(f"features with a match (%): best decoder cosine > {tables.threshold:g}", fontsize=8.5)
        bar.ax.tick_params(labelsize=8, length=3)
        bar.outline.set_visible(False)  # a spine; the stubs call it a property
    _title(figure, "Figure 13: features of a layer found in an earlier one", setup)
    _layer_legend(figure, tables)
    return figure


def _scale(results: Iterable[CellResult]) -> Normalize:
    """From 0 to the largest value, rounded up to the next ten per cent."""
    largest = max((result.measured.ratio for result in results if result.measured is not None), default=0.0)
    return Normalize(0, max(10, 10 * math.ceil(10 * largest)))


def _draw_layers(axes: Axes, results: Sequence[CellResult], scale: Normalize) -> AxesImage:
    layers = list(FIGURE13_LAYERS)
    rows, columns = layers[1:], layers[:-1]
    shares = full((len(rows), len(columns)), nan)
    for result in results:
        if result.measured is not None:
            row, column = rows.index(result.cell.counted.layer), columns.index(result.cell.sought_in.layer)
            shares[row, column] = 100 * result.measured.ratio
    image = axes.imshow(ma.masked_invalid(shares), cmap="viridis", norm=scale)
    for result in results:
        row, column = rows.index(result.cell.counted.layer), columns.index(result.cell.sought_in.layer)
        _draw_layer_cell(axes, row, column, result, image.cmap, scale)
    axes.set_xticks(range(len(columns)), [str(layer) for layer in columns], fontsize=8.5, color=INK)
    axes.set_yticks(range(len(rows)), [str(layer) for layer in rows], fontsize=8.5, color=INK)
    axes.set_xlabel("earlier layer, in which they are sought", fontsize=9, color=INK)
    grid(axes, len(rows), len(columns))
    return image


def _draw_layer_cell(
    axes: Axes, row: int, column: int, result: CellResult, colours: Colormap, scale: Normalize
) -> None:
    if result.measured is None:
        axes.add_patch(cell_patch(column, row, facecolor=FAINT))
        return
    share = 100 * result.measured.ratio
    if result.undertrained:
        axes.add_patch(hatched(column, row, share, colours, scale))
    text = (f"{share:.1f}" if share < 9.95 else f"{share:.0f}") + (MIXED if result.mixed else "")
    ink = ink_on(share, colours, scale)
    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)


def _layer_legend(figure: Figure, tables: StudyTables) -> None:
    results = [result for each in tables.figure13.values() for result in each]
    handles: list[Artist] = []
    if any(result.undertrained for result in results):
        text = (
            f"undertrained: more than {tables.undertrained_above:.0%} of the features of one of the two "
            "SAEs still match the dictionary it started from"
        )
        handles.append(hatch_key(text))
    if any(result.measured is None for result in results):
        handles.append(cell_patch(0, 0, facecolor=FAINT, label="a run is missing"))
    handles += _mixed_key(results)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _title(figure: Figure, title: str, setup: StudySetup) -> None:
    """The title, and below it the sweep in one sentence."""
    width = int(_CHARACTERS_PER_INCH * figure.get_size_inches()[0])
    figure.suptitle(f"{title}\n{textwrap.fill(setup.sentence(), width)}", fontsize=9.5, color=INK)
