"""Figures of a comparison: the matching matrix, and histograms of the top-1 cosines."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from sae_sweep.analysis import COSINE_EDGES, SEVERAL, Comparison, KeySummary
from sae_sweep.analysis.ordering import cluster_order
from sae_sweep.report.formatting import marked, mixed_note, short_labels
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

_MOST_WITH_TEXT = 30
"""With more SAEs than this, the cells are too small for numbers."""
_NOTE_CHARACTERS = 72
"""Width of a note below a figure."""
_TILTED: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


def clustered(comparison: Comparison) -> Comparison:
    """The comparison with its SAEs in an order in which those that share the most stand beside each other."""
    order = cluster_order(comparison.ratios)

    def sort(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in order)

    return replace(
        comparison,
        names=sort(comparison.names),
        sizes=sort(comparison.sizes),
        init_matches=sort(comparison.init_matches),
        mixed=sort(comparison.mixed),
        keys=sort(comparison.keys),
        ratios=comparison.ratios[np.ix_(order, order)],
    )


def matrix_figure(comparison: Comparison) -> Figure:
    """Heat map of the share of the row's features that have a match in the column.

    A narrow column on the right shows how many features of each SAE still match its own initial
    dictionary; cells with an SAE above the limit are hatched.
    """
    count = len(comparison.names)
    labels = short_labels(comparison.names, comparison.keys)
    cell = min(0.62, max(0.2, 9 / count))
    longest = max(len(label) for label in labels)
    side = max(cell * count, 2.6)
    label = 0.0077 * _label_size(count) * longest
    figure = new_figure(side + label + cell + 1.75, side + 0.75 * label + 1.55)
    cast(Any, figure.get_layout_engine()).set(wspace=0)
    axes, beside = figure.subplots(1, 2, width_ratios=[count, 1])
    scale = _scale(comparison)
    image = _draw_matrix(axes, comparison, scale)
    _draw_own_init(beside, comparison, scale)
    _label(axes, comparison, labels)
    bar = figure.colorbar(image, ax=[axes, beside], pad=0.02, fraction=0.04, aspect=28)
    bar.set_label(f"matched features (%): best decoder cosine > {comparison.threshold:g}", fontsize=8.5)
    bar.ax.tick_params(labelsize=8, length=3)
    bar.outline.set_visible(False)  # a spine; the stubs call it a property
    figure.suptitle(_title(comparison), fontsize=11, color=INK)
    _legend(figure, comparison)
    return figure


def _scale(comparison: Comparison) -> Normalize:
    """From 0 to the largest value, rounded up to the next ten per cent."""
    largest = np.nanmax([*comparison.ratios.flat, *comparison.init_matches])
    return Normalize(0, max(10, 10 * math.ceil(10 * largest)))


def _draw_matrix(axes: Axes, comparison: Comparison, scale: Normalize) -> AxesImage:
    count = len(comparison.names)
    shares = 100 * comparison.ratios
    image = axes.imshow(np.ma.masked_invalid(shares), cmap="viridis", norm=scale)
    undertrained = _undertrained(comparison)
    for row, column in np.ndindex(count, count):
        share = float(shares[row, column])
        if math.isnan(share):
            axes.add_patch(cell_patch(column, row, facecolor=FAINT))
            continue
        if undertrained[row] or undertrained[column]:
            axes.add_patch(hatched(column, row, share, image.cmap, scale))
        if count <= _MOST_WITH_TEXT:
            _write(axes, column, row, share, count, image.cmap, scale)
    grid(axes, count, count)
    return image


def _draw_own_init(axes: Axes, comparison: Comparison, scale: Normalize) -> None:
    """The match of each SAE to its own initial dictionary, on the same scale."""
    shares = 100 * np.array(comparison.init_matches)[:, None]
    image = axes.imshow(shares, cmap="viridis", norm=scale)
    for row, undertrained in enumerate(_undertrained(comparison)):
        if undertrained:
            axes.add_patch(hatched(0, row, shares[row, 0], image.cmap, scale))
        if len(shares) <= _MOST_WITH_TEXT:
            _write(axes, 0, row, shares[row, 0], len(shares), image.cmap, scale)
    axes.set_xticks([0], ["its own start"], fontsize=_label_size(len(shares)), color=MUTED, **_TILTED)
    axes.set_yticks([])
    grid(axes, len(shares), 1)


def _label(axes: Axes, comparison: Comparison, labels: list[str]) -> None:
    size = _label_size(len(labels))
    if len(set(comparison.sizes)) > 1:
        labels = [f"{label}  n={n:,}" for label, n in zip(labels, comparison.sizes, strict=True)]
    labels = list(map(marked, labels, comparison.mixed))
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, fontsize=size, color=INK, **_TILTED)
    axes.set_yticks(ticks, labels, fontsize=size, color=INK)
    axes.set_ylabel("features of this SAE …", fontsize=9, color=INK)
    axes.set_xlabel("… that have a match in this SAE", fontsize=9, color=INK)


def _title(comparison: Comparison) -> str:
    sizes = set(comparison.sizes)
    each = f", {sizes.pop():,} features each" if len(sizes) == 1 else ""
    return f"Share of the row's features found in the column\n{len(comparison.names)} SAEs{each}"


def _legend(figure: Figure, comparison: Comparison) -> None:
    handles: list[Artist] = []
    if any(_undertrained(comparison)):
        text = (
            f"undertrained, or fine-tuned: more than {comparison.undertrained_above:.0%} of the features of\n"
            "one of the two SAEs still match what it started from"
        )
        handles.append(hatch_key(text))
    handles += _mixed_key(comparison.mixed)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False)


def _mixed_key(mixed: Iterable[object]) -> list[Line2D]:
    """The note on mixed runs for a legend, if any is mixed."""
    return [text_key(textwrap.fill(mixed_note(), _NOTE_CHARACTERS))] if any(mixed) else []


def _undertrained(comparison: Comparison) -> list[bool]:
    return [match > comparison.undertrained_above for match in comparison.init_matches]


def _write(
    axes: Axes, column: int, row: int, share: float, count: int, colours: Colormap, scale: Normalize
) -> None:
    text = f"{share:.1f}" if count <= 12 and share < 99.95 else f"{share:.0f}"
    axes.text(
        column, row, text, ha="center", va="center",
        fontsize=_label_size(count) - 0.5, color=ink_on(share, colours, scale),
    )  # fmt: skip


def _label_size(count: int) -> float:
    return 8.5 if count <= 12 else 7 if count <= 20 else 5.5 if count <= 40 else 4


def cosine_figure(comparison: Comparison) -> Figure:
    """Histograms of the top-1 cosines, one outline per key, in per cent of its features per bin."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    colours = dict(zip((s.key for s in comparison.summaries if s.key != SEVERAL), SERIES * 9, strict=False))
    for summary in comparison.summaries:
        counts = np.array(summary.histogram)
        axes.stairs(
            100 * counts / max(1, counts.sum()), COSINE_EDGES, linewidth=1.5,
            color=colours.get(summary.key, "#9a9a9a"), label=_line_label(summary),
        )  # fmt: skip
    axes.axvline(comparison.threshold, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f" matched: > {comparison.threshold:g}", (comparison.threshold, 1), 
        xycoords=("data", "axes fraction"), fontsize=8, color=MUTED, va="top",
    )  # fmt: skip
    axes.set_xlim(_left_end(comparison), 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("best decoder cosine of a feature in the other SAE", fontsize=9, color=INK)
    axes.set_ylabel("features (%) per 0.02", fontsize=9, color=INK)
    axes.set_title("Where the features of one SAE have their nearest in another", fontsize=11, color=INK)
    if comparison.summaries:
        handles = [
            *axes.get_legend_handles_labels()[0],
            *_mixed_key(summary.mixed for summary in comparison.summaries),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    tidy(axes)
    return figure


def _line_label(summary: KeySummary) -> str:
    what = "more than one key differs" if summary.key == SEVERAL else f"only {summary.key} differs"
    number = summary.pairs - summary.undertrained if summary.trained else summary.pairs
    pairs = "1 pair" if number == 1 else f"{number} pairs"
    pairs = marked(pairs if summary.trained else f"{pairs}, still their start", summary.mixed)
    return f"{what} ({pairs}): {summary.ratio:.1%} matched [{summary.low:.1%}, {summary.high:.1%}]"


def _left_end(comparison: Comparison) -> float:
    """Lower end of the x axis, left of the smallest cosine and of the threshold, which has a label there."""
    filled = np.flatnonzero(np.array(comparison.histogram))
    smallest = min(COSINE_EDGES[filled[0]], comparison.threshold) if len(filled) else comparison.threshold
    return max(-1.0, smallest - 0.06)
