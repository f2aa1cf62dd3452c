"""Figures of families: what they depend on, in how many SAEs they are, and in which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sae_sweep.analysis.families import Families
from sae_sweep.analysis.family_keys import KeyRow, accumulation, by_number_of_runs
from sae_sweep.analysis.ordering import cluster_order
from sae_sweep.config import escaped
from sae_sweep.report.formatting import short_labels
from sae_sweep.report.panels import Drawn, label_figure
from sae_sweep.report.style import FAINT, INK, MUTED, SERIES, log_scale, new_figure, tidy

_LINE = 0.26
"""Height of a row of dots in inches."""
_MOST_LABELS = 40
"""SAEs above which a presence matrix has no labels."""
_KINDS = {"only": "in one value only", "common": "common to all values"}


def kinds_figure(found: Families, rows: Sequence[KeyRow]) -> Drawn:
    """Share of the families that live in one value of a key only, and that are common to all, beside chance.

    Args:
        found: families of one hook.
        rows: their kinds.
    """
    keys = list(dict.fromkeys(row.key for row in rows if row.key))
    figure = new_figure(6.4, 0.9 + 2 * _LINE * max(1, len(keys)))
    panels = figure.subplots(1, 2, sharey=True)
    drawn: list[KeyRow] = []
    for axes, (kind, heading) in zip(panels, _KINDS.items(), strict=True):
        for y, key in enumerate(keys):
            row = next(row for row in rows if (row.key, row.kind, row.value) == (key, kind, ""))
            drawn.append(row)
            axes.plot([100 * row.null_low, 100 * row.null_high], [y, y], color=FAINT, linewidth=7, zorder=1)
            axes.plot(100 * row.null, y, "|", color=MUTED, markersize=8, zorder=2)
            axes.plot([100 * row.low, 100 * row.high], [y, y], color=SERIES[0], linewidth=1.2, zorder=3)
            axes.plot(100 * row.share, y, "o", color=SERIES[0], markersize=4, zorder=4)
        axes.set_title(heading, fontsize=8.5, color=INK)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_xlim(left=0)
        tidy(axes)
    panels[0].set_yticks(range(len(keys)), keys)
    universal = next(row for row in rows if row.kind == "universal")
    label_figure(
        figure,
        f"What families of features depend on\n{len(found.sizes):,} families in {len(found.runs)} SAEs",
        "share of the families (%)",
        "",
        notes=[
            f"{universal.families:,} families ({universal.share:.1%}) are in at least nine tenths of the "
            "SAEs. Lines: 95% intervals over families."
        ],
        keys=[
            Line2D([], [], color=SERIES[0], marker="o", markersize=4, linewidth=1.2, label="families"),
            Line2D([], [], color=FAINT, linewidth=7, label="by chance (95%): presence shuffled"),
        ],
    )
    return Drawn(figure, _table([*drawn, universal]))


def _table(rows: Sequence[KeyRow]) -> pyarrow.Table:
    names = ("key", "kind", "families", "share", "low", "high", "null", "null_low", "null_high")
    return pyarrow.table({name: [getattr(row, name) for row in rows] for name in names})


def counts_figure(found: Families) -> Drawn:
    """In how many SAEs a feature is, and how many distinct features n SAEs have together."""
    counts, together = by_number_of_runs(found)[1:].numpy(), accumulation(found).numpy()
    runs = np.arange(1, len(counts) + 1)
    figure = new_figure(6.4, 2.6)
    left, right = figure.subplots(1, 2)
    left.vlines(runs, 0.5, counts, color=SERIES[0], linewidth=1)
    left.plot(runs, counts, "o", color=SERIES[0], markersize=3)
    log_scale(left.yaxis)
    left.set_ylim(bottom=0.7)
    left.set_ylabel("features in exactly so many", fontsize=8, color=INK)
    right.plot(runs, together, color=SERIES[0], linewidth=1.5, marker="o", markersize=2.5)
    right.set_ylabel("distinct features in so many", fontsize=8, color=INK)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        tidy(axes)
    label_figure(
        figure,
        f"Features shared by several SAEs\n{len(found.runs)} SAEs of one hook",
        "SAEs",
        "",
        notes=[
            "A family counts once, and so does a feature in no family. Right: mean over all choices of SAEs; "
            "a flat end would mean that more SAEs find nothing new."
        ],
    )
    numbers = {"saes": runs, "features_in_exactly": counts, "distinct_features_together": together}
    return Drawn(figure, pyarrow.table(numbers))


def presence_figure(found: Families) -> Drawn:
    """Which families each SAE has: families in the order of their size, SAEs clustered by what they share."""
    presence = found.presence.numpy()
    share = presence.T.astype(float) @ presence / np.maximum(presence.sum(0)[:, None], 1)
    order = cluster_order(share)
    count = len(order)
    figure = new_figure(6.4, 0.6 + min(5.0, max(1.2, 0.16 * count)))
    keys = [key for key in found.keys[0] if len({str(own.get(key)) for own in found.keys}) > 1]
    strips, axes = figure.subplots(1, 2, width_ratios=[max(1, len(keys)), 22])
    axes.imshow(
        presence.T[order], aspect="auto", cmap=ListedColormap(["white", INK]), interpolation="nearest"
    )
    labels = short_labels(found.runs, found.keys)
    legend = _strips(strips, found, keys, order)
    if count <= _MOST_LABELS:
        strips.set_yticks(range(count), [labels[run] for run in order], fontsize=min(7.0, 240 / count))
    axes.set_yticks([])
    tidy(axes)
    label_figure(
        figure,
        f"Which SAEs have which families\n{len(presence):,} families, {count} SAEs",
        "families, those in the most SAEs first",
        "",
        notes=["SAEs beside each other share the most families (average linkage)."],
        keys=legend,
    )
    names = pyarrow.array([found.runs[run] for run in order])
    return Drawn(figure, pyarrow.table({"run": names, "presence": presence.T[order].tolist()}))


def _strips(axes: Axes, found: Families, keys: Sequence[str], order: Sequence[int]) -> list[Any]:
    """A column of colours per key, which say its value in each SAE; returns the legend."""
    legend, image = [], np.zeros((len(order), max(1, len(keys)), 3))
    for column, key in enumerate(keys):
        values = list(dict.fromkeys(str(own.get(key)) for own in found.keys))
        colours = _colours(len(values))
        for row, run in enumerate(order):
            image[row, column] = colours[values.index(str(found.keys[run].get(key)))]
        legend += [
            Patch(facecolor=colour, label=escaped(f"{key} {value}"))
            for value, colour in zip(values, colours, strict=True)
        ]
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=7)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return legend


def _colours(count: int) -> list[tuple[float, float, float]]:
    """Distinct colours; many are shades of one scale."""
    if count <= len(SERIES):
        return [to_rgb(colour) for colour in SERIES[:count]]
    return [to_rgb(colormaps["viridis"](place)) for place in np.linspace(0, 1, count)]
