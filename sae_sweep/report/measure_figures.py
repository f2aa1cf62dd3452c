"""Figures of measures: beside their nulls by key, against the threshold, and against the firing rate."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sae_sweep.analysis.key_measures import DENSITY_EDGES, KeyCurve, KeyMeasure, KeyRates
from sae_sweep.analysis.measures import MEASURES
from sae_sweep.analysis.neighbours import Curve, Nearest
from sae_sweep.report.panels import Drawn, label_figure
from sae_sweep.report.style import FAINT, INK, MUTED, SERIES, new_figure, power_of_ten, tidy

_BINS = 100
_FEWEST = 0.002
"""Share of the features below which a bin of densities is not drawn."""
_STYLES: Sequence[Any] = (":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Lines of the nulls."""
_RANKS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00")
"""Colours of the nearest, second, third and fourth."""


def measures_figure(rows: Sequence[KeyMeasure], features: str = "all") -> Drawn:
    """Every measure by key, beside its null.

    Args:
        rows: measures by key; of several nulls the first is drawn.
        features: `all` or `live`.
    """
    some = [row for row in rows if row.features == features]
    chance = some[0].chance if some else ""
    some = [row for row in some if row.chance == chance]
    keys = list(dict.fromkeys(row.key for row in some))
    bad = undertrained_keys(some)
    names = [name for name in MEASURES if any(row.measure.measure == name for row in some)]
    figure = new_figure(5.6, 0.8 + 0.34 * max(1, len(names)) * max(1.0, 0.45 * len(keys)))
    axes = figure.subplots()
    step = 0.7 / max(1, len(keys))
    for row in some:
        place = keys.index(row.key)
        y = names.index(row.measure.measure) + (place - (len(keys) - 1) / 2) * step
        found, colour = row.measure.found, SERIES[place % len(SERIES)]
        axes.plot([found.low, found.high], [y, y], color=colour, linewidth=1.2)
        axes.plot(found.value, y, "o", color=colour, markersize=4)
        axes.plot(row.measure.null.value, y, "|", color=MUTED, markersize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=min(0.0, *axes.get_xlim()))
    tidy(axes)
    handles = [
        Line2D([], [], color=SERIES[i % len(SERIES)], marker="o", markersize=4, label=_label(key, bad))
        for i, key in enumerate(keys)
    ]
    if chance:
        handles.append(Line2D([], [], linestyle="", marker="|", color=MUTED, label=f"null: {chance}"))
    label_figure(
        figure,
        f"What SAEs share that differ in one key alone ({features} features)",
        "value of the measure, both directions averaged",
        "",
        notes=["Lines: 95% intervals over features."],
        keys=handles,
    )
    return Drawn(figure, _measure_numbers(some))


def _measure_numbers(rows: Sequence[KeyMeasure]) -> pyarrow.Table:
    return pyarrow.table(
        {
            "key": [row.key for row in rows],
            "measure": [row.measure.measure for row in rows],
            "value": [row.measure.found.value for row in rows],
            "low": [row.measure.found.low for row in rows],
            "high": [row.measure.found.high for row in rows],
            "null": [row.measure.null.value for row in rows],
        }
    )


def undertrained_keys(rows: Sequence[KeyMeasure]) -> set[str]:
    """Keys all of whose pairs have an SAE that still matches its start: nothing is concluded from them."""
    return {row.key for row in rows if row.undertrained == row.pairs}


def curves_figure(
    curves: Sequence[KeyCurve], threshold: float, features: str = "all", undertrained: Collection[str] = ()
) -> Drawn:
    """Share of features with a match against the threshold, by key, so that no conclusion hangs on one."""
    some = [one for one in curves if one.features == features]
    figure = new_figure(5.6, 3.0)
    axes = figure.subplots()
    tables, handles = [], []
    for place, one in enumerate(some):
        colour = SERIES[place % len(SERIES)]
        _draw_curve(axes, one.found, colour, "-")
        handles.append(Line2D([], [], color=colour, label=_label(one.key, undertrained)))
        tables.append(_curve_numbers(one.key, "", one.found))
        for style, (name, null) in zip(_STYLES, one.nulls.items(), strict=False):
            axes.plot(null.thresholds, 100 * null.share, color=colour, linewidth=0.9, linestyle=style)
            tables.append(_curve_numbers(one.key, name, null))
    nulls = list(dict.fromkeys(name for one in some for name in one.nulls))
    handles += [
        Line2D([], [], color=MUTED, linewidth=0.9, linestyle=style, label=f"null: {name}")
        for style, name in zip(_STYLES, nulls, strict=False)
    ]
    axes.axvline(threshold, color=FAINT, linewidth=1.2, zorder=0)
    axes.set_xlim(0.3, 0.99)
    axes.set_ylim(0, 100)
    tidy(axes)
    label_figure(
        figure,
        f"Features with a match, by how near it must be ({features} features)",
        f"threshold of the cosine (used elsewhere: {threshold:g})",
        "features with a match (%)",
        notes=["Bands: 95% intervals over features."],
        keys=handles,
    )
    empty = _curve_numbers("", "", Curve(*[torch.zeros(0)] * 4))
    return Drawn(figure, pyarrow.concat_tables([empty, *tables]))


def _draw_curve(axes: Axes, curve: Curve, colour: str, style: str) -> None:
    axes.plot(curve.thresholds, 100 * curve.share, color=colour, linewidth=1.5, linestyle=style)
    axes.fill_between(
        curve.thresholds, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.2, linewidth=0
    )


def _curve_numbers(key: str, chance: str, curve: Curve) -> pyarrow.Table:
    count = len(curve.share)
    columns = {name: np.asarray(part, dtype=np.float64) for name, part in curve._asdict().items()}
    text = pyarrow.string()
    named = {"key": pyarrow.array([key] * count, text), "chance": pyarrow.array([chance] * count, text)}
    return pyarrow.table(named | columns)


def rates_figure(rates: Sequence[KeyRates], undertrained: Collection[str] = ()) -> Drawn:
    """Probability that a feature has a mutual match, against how often it fires, by key."""
    figure = new_figure(5.6, 3.0)
    axes = figure.subplots()
    centres = (np.array(DENSITY_EDGES[:-1]) + np.array(DENSITY_EDGES[1:])) / 2
    rows: list[dict[str, object]] = []
    handles = []
    for place, one in enumerate(rates):
        shown = (one.features > _FEWEST).numpy()
        colour = SERIES[place % len(SERIES)]
        share, low, high = (100 * part.numpy()[shown] for part in (one.matched, one.low, one.high))
        axes.fill_between(centres[shown], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(centres[shown], share, color=colour, marker="o", markersize=3.5, linewidth=1.4)
        label = _label(one.key, undertrained)
        handles.append(Line2D([], [], color=colour, marker="o", markersize=3.5, label=label))
        parts = zip(
            centres[shown].tolist(), one.features.numpy()[shown].tolist(), share, low, high, strict=True
        )
        names = ("log10_density", "features", "matched_percent", "low", "high")
        rows += [{"key": one.key, **dict(zip(names, part, strict=True))} for part in parts]
    axes.set_ylim(0, 100)
    axes.set_xticks(range(-6, 1), [power_of_ten(power) for power in range(-6, 1)])
    shown_at = [one.features > _FEWEST for one in rates]
    least = min((float(centres[where.numpy()].min()) for where in shown_at if where.any()), default=-6.0)
    axes.set_xlim(np.floor(least), 0)
    tidy(axes)
    label_figure(
        figure,
        "Features with a mutual match, by how often they fire",
        "density: share of tokens on which a feature fires",
        "features with a match (%)",
        notes=[
            f"Half a power of ten per point; bins with less than {_FEWEST:.1%} of the features are left out. "
            "Bands: 95% intervals over features. Live features, pairs that differ in one key alone."
        ],
        keys=handles,
    )
    return Drawn(figure, pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"key": []}))


def _label(key: str, undertrained: Collection[str]) -> str:
    return f"{key or 'this pair'}{' (no conclusion)' if key in undertrained else ''}"


class TopCosines(NamedTuple):
    """Two SAEs whose nearest rows are shown."""

    label: str
    found: Mapping[str, Nearest]
    """By what is compared, such as `decoder features`."""
    random: Mapping[str, float]
    """The mean best cosine with random rows in the other's place."""


def top_cosines_figure(pairs: Sequence[TopCosines], title: str) -> Drawn:
    """Histograms of the cosines with the nearest to the fourth-nearest rows (the study's Figure 11)."""
    kinds = list(pairs[0].found)
    figure = new_figure(7.0, 1.35 * len(kinds) + 0.4)
    grid = figure.subplots(len(kinds), len(pairs), sharex="row", squeeze=False)
    tables = []
    for column, pair in enumerate(pairs):
        for row, kind in enumerate(kinds):
            axes, cosines = grid[row][column], pair.found[kind].cosines_a
            edges = np.linspace(min(0.0, float(cosines.min())), 1, _BINS + 1)
            for rank in range(cosines.shape[1]):
                counts, _ = np.histogram(cosines[:, rank].numpy(), edges)
                axes.stairs(counts, edges, color=_RANKS[rank], linewidth=0.9)
                tables.append(_histogram_numbers(pair.label, kind, rank, edges, counts))
            axes.axvline(pair.random[kind], color=MUTED, linewidth=0.8, linestyle=":")
            widest = max(float(one.found[kind].cosines_a.max()) for one in pairs)
            axes.set_xlim(edges[0], max(0.2, min(1.0, 1.1 * widest)))
            if row == 0:
                axes.set_title(pair.label, fontsize=8, color=INK)
            if column == 0:
                axes.set_ylabel(kind.replace(" ", "\n"), fontsize=7.5, color=INK)
            tidy(axes)
    label_figure(
        figure,
        title,
        "cosine with the nearest rows of the other SAE",
        "rows per bin",
        notes=[f"{_BINS} bins. Dotted: mean best cosine with random rows in the other's place."],
        keys=[Line2D([], [], color=_RANKS[rank], label=f"top {rank + 1}") for rank in range(len(_RANKS))],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _histogram_numbers(
    label: str, kind: str, rank: int, edges: np.ndarray, counts: np.ndarray
) -> pyarrow.Table:
    return pyarrow.table(
        {
            "pair": [label] * len(counts),
            "rows": [kind] * len(counts),
            "rank": [rank + 1] * len(counts),
            "from": edges[:-1],
            "to": edges[1:],
            "count": counts,
        }
    )
