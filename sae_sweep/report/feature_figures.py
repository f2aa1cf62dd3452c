"""Figures with a dot or a count per feature: how strongly and how often it fires, deciles, and two sets."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pyarrow
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sae_sweep.analysis.bimodality import Bimodality
from sae_sweep.config import EvaluationConfig
from sae_sweep.report.panels import (
    ACTIVATION_UNIT,
    Drawn,
    Panel,
    check_panels,
    count_note,
    label_figure,
    numbers_of,
    panel_grid,
    titled,
)
from sae_sweep.report.style import MUTED, SERIES, log_scale

_BINS_PER_POWER_OF_TEN = 10
_SMALLEST_P = 1e-5
"""Smallest p-value in the dip test's table."""


class _Level(NamedTuple):
    """A quantile of a feature's non-zero activations."""

    column: str
    label: str


_DECILES = tuple(_Level(f"decile_{tenth}", f"{10 * tenth} %") for tenth in range(1, 10))
_STUDY_DECILES = (
    *(_Level(f"decile_{tenth}", f"Decile {tenth - 1}") for tenth in range(2, 10)),
    _Level("max", "Decile 10"),
)
"""The study computes the deciles 10 % to 100 %, leaves out the first, and names the others as here."""


def strength_figure(panels: Sequence[Panel]) -> Drawn:
    """Standard deviation against mean of each feature's non-zero activations."""
    check_panels(panels)
    figure, grid = panel_grid([panel.label for panel in panels], share_x=True, share_y=True)
    tables, once = [], []
    for axes, panel in zip(grid, panels, strict=True):
        mean, std = panel.feature("mean"), panel.feature("std")
        tables.append(_draw_features(axes, panel, "mean", "std", mean > 0))
        once.append(int(((mean > 0) & ~(std > 0)).sum()))
    label_figure(
        figure,
        titled("Mean and deviation of each feature's activations", panels),
        f"mean non-zero activation of a feature ({ACTIVATION_UNIT})",
        f"standard deviation ({ACTIVATION_UNIT})",
        notes=[
            count_note(panels, features=True),
            f"without deviation, as those that fire once, and not drawn either: {_counted(once)}"
            if any(once)
            else "",
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def frequency_figure(panels: Sequence[Panel], limits: EvaluationConfig | None = None) -> Drawn:
    """Density of each feature against the mean of its non-zero activations.

    Args:
        panels: SAEs.
        limits: of dense and ultra-rare features, drawn as lines.
    """
    check_panels(panels)
    figure, grid = panel_grid([panel.label for panel in panels], share_x=True, share_y=True)
    tables = []
    for axes, panel in zip(grid, panels, strict=True):
        tables.append(_draw_features(axes, panel, "mean", "density", panel.feature("mean") > 0))
        if panel.dead < len(panel.features):  # a line alone gives a log axis no range
            for limit in _limits(limits, panel).values():
                axes.axhline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    label_figure(
        figure,
        titled("How often and how strongly each feature fires", panels),
        f"mean non-zero activation of a feature ({ACTIVATION_UNIT})",
        "density (share of tokens)",
        notes=[count_note(panels, features=True), _limit_note(limits, panels)],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _draw_features(
    axes: Axes, panel: Panel, x: str, y: str, drawn: Bool[np.ndarray, " d_sae"]
) -> pyarrow.Table:
    """A dot per feature on two log axes."""
    columns = {
        name: panel.feature(name)[drawn].astype(int if name == "feature" else float)
        for name in ("feature", x, y)
    }
    log_scale(axes.xaxis)
    log_scale(axes.yaxis)
    axes.scatter(columns[x], columns[y], s=2.5, alpha=0.35, linewidths=0, color=SERIES[0], rasterized=True)
    return numbers_of(panel, columns)


def density_figure(panels: Sequence[Panel], limits: EvaluationConfig | None = None) -> Drawn:
    """Histograms of the features' densities, with the dead ones counted, and dense and ultra-rare marked."""
    check_panels(panels)
    figure, grid = panel_grid([panel.label for panel in panels], share_x=True)
    lowest = min(-1, *(math.floor(-math.log10(max(1, panel.tokens))) for panel in panels))
    edges = 10.0 ** np.linspace(lowest, 0, -lowest * _BINS_PER_POWER_OF_TEN + 1)
    tables = []
    for axes, panel in zip(grid, panels, strict=True):
        density, marks = panel.feature("density"), _limits(limits, panel)
        counts, _ = np.histogram(np.clip(density[density > 0], edges[0], 1), edges)
        axes.stairs(counts, edges, fill=True, color=SERIES[0])
        log_scale(axes.xaxis)
        axes.set_xlim(edges[0], 1.2)
        axes.set_ylim(0, 1.35 * max(1, counts.max()))
        for limit in marks.values():
            axes.axvline(limit, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        lines = [f"{panel.dead:,} dead", *_beyond(density, marks)]
        _write_in_corner(axes, lines)
        tables.append(numbers_of(panel, {"from": edges[:-1], "to": edges[1:], "features": counts}))
    label_figure(
        figure,
        titled("How often features fire", panels),
        "density (share of tokens)",
        f"features per {1 / _BINS_PER_POWER_OF_TEN:g} of a power of ten",
        notes=[count_note(panels, features=True), _limit_note(limits, panels)],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _limits(limits: EvaluationConfig | None, panel: Panel) -> dict[str, float]:
    """Densities below which features are ultra-rare, and above which they are dense, where tokens show it."""
    limits = limits or EvaluationConfig()
    found = {"ultra-rare": limits.ultra_rare, "dense": limits.dense}
    return {name: limit for name, limit in found.items() if limit * panel.tokens >= 1}


def _beyond(density: Float[np.ndarray, " d_sae"], marks: Mapping[str, float]) -> list[str]:
    counts = {
        name: ((density > 0) & (density < limit)).sum() if name == "ultra-rare" else (density > limit).sum()
        for name, limit in marks.items()
    }
    return [f"{count:,} {name}" for name, count in counts.items()]


def _limit_note(limits: EvaluationConfig | None, panels: Sequence[Panel]) -> str:
    limits = limits or EvaluationConfig()
    marks = [f"dense above {limits.dense:g}"] * any("dense" in _limits(limits, panel) for panel in panels)
    rare = any("ultra-rare" in _limits(limits, panel) for panel in panels)
    marks += [f"ultra-rare below {limits.ultra_rare:g}"] * rare
    dashed = f"dashed: {', '.join(marks)}" if marks else ""
    few = f"ultra-rare (below {limits.ultra_rare:g}) would be fewer than one of these tokens"
    return "; ".join(filter(None, (dashed, "" if rare else few)))


def _write_in_corner(axes: Axes, lines: Sequence[str]) -> None:
    axes.annotate(
        "\n".join(lines), (0.03, 0.98), xycoords="axes fraction", va="top", fontsize=6.5, color=MUTED
    )


def decile_figure(panels: Sequence[Panel], *, study: bool = False) -> Drawn:
    """Deciles of each feature's non-zero activations (the study's Figure 10).

    Args:
        panels: SAEs.
        study: as the study draws them: features in their order instead of by their median, and its labels,
            by which the 20 % quantile is "Decile 1" and the maximum "Decile 10".
    """
    check_panels(panels)
    levels = _STUDY_DECILES if study else _DECILES
    figure, grid = panel_grid([panel.label for panel in panels], share_x=False, share_y=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(levels)))
    tables = []
    for axes, panel in zip(grid, panels, strict=True):
        values = np.stack([panel.feature(level.column) for level in levels])
        live = np.flatnonzero(panel.feature("active") > 0)
        order = live if study else live[np.argsort(panel.feature("decile_5")[live], kind="stable")]
        places = order if study else np.arange(len(order))
        for row, colour in zip(values, colours, strict=True):
            axes.scatter(places, row[order], s=1.2, linewidths=0, color=[colour], rasterized=True)
        log_scale(axes.yaxis)
        columns = {level.label: row[order] for level, row in zip(levels, values, strict=True)}
        tables.append(numbers_of(panel, {"feature": order, "place": places, **columns}))
    label_figure(
        figure,
        titled("Deciles of each feature's activations", panels),
        "feature" if study else "live features, by their median",
        f"non-zero activation ({ACTIVATION_UNIT})",
        notes=[count_note(panels, features=True)],
        keys=[
            Line2D([], [], linestyle="", marker="o", markersize=4, color=colour, label=level.label)
            for level, colour in zip(levels, colours, strict=True)
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def separation_figure(panels: Sequence[Panel], tests: Sequence[Bimodality]) -> Drawn:
    """Histograms of the features' mean activations on a log scale, with a test for two sets of features.

    Args:
        panels: SAEs.
        tests: `bimodality` of the mean activation of each panel's features.
    """
    check_panels(panels, tests=tests)
    figure, grid = panel_grid([panel.label for panel in panels], share_x=True)
    logs = [np.log10(mean[mean > 0]) for mean in (panel.feature("mean") for panel in panels)]
    ends = [end for values in logs if len(values) for end in (values.min(), values.max())] or [0.0, 0.0]
    lowest, highest = math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends) + 0.01) / 10
    edges = np.linspace(lowest, highest, round((highest - lowest) * 2 * _BINS_PER_POWER_OF_TEN) + 1)
    tables = []
    for axes, panel, values, test in zip(grid, panels, logs, tests, strict=True):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts, 10**edges, fill=True, color=SERIES[2])
        log_scale(axes.xaxis)
        axes.set_ylim(0, 1.5 * max(1, counts.max()))
        _write_in_corner(axes, _test_lines(test))
        columns = {"from": 10 ** edges[:-1], "to": 10 ** edges[1:], "features": counts}
        result = {"dip": test.dip, "p": test.p, "ashman_d": test.ashman_d, "n": test.n, "dead": test.dead}
        tables.append(numbers_of(panel, columns, **result))
    label_figure(
        figure,
        titled("Do the features fall into two sets?", panels),
        f"mean non-zero activation of a feature ({ACTIVATION_UNIT})",
        f"features per {1 / (2 * _BINS_PER_POWER_OF_TEN):g} of a power of ten",
        notes=[
            count_note(panels, features=True),
            "p: dip test of a single mode, on the logarithm; D: Ashman's distance of two Gaussians fitted to "
            "it, clearly apart above 2",
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _test_lines(test: Bimodality) -> list[str]:
    if math.isnan(test.p):
        return [f"n = {test.n:,}: too few"]
    p = (
        f"p < {_SMALLEST_P:.0e}".replace("e-0", "e-")
        if test.p < _SMALLEST_P
        else f"p = {test.p:.2f}"
        if test.p >= 0.01
        else f"p = {test.p:.0e}"
    )
    return [f"n = {test.n:,}", f"dip {test.dip:.4f}, {p}", f"D = {test.ashman_d:.2f}"]


def _counted(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
