"""Figures over layers: decoders in two dimensions, and how many features follow the position."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sae_sweep.analysis.position_table import PositionRow, UnsharedRow
from sae_sweep.config import SaeSweepError, escaped
from sae_sweep.report.panels import (
    CHANGES,
    Drawn,
    Panel,
    check_panels,
    count_note,
    label_figure,
    numbers_of,
    panel_colours,
    panel_grid,
    runs_name,
    titled,
)
from sae_sweep.report.position_figures import COLOURS
from sae_sweep.report.style import INK, MUTED, SERIES, new_figure, tidy

_DEAD = "#9a9a9a"
_DOT = 2.0
_RANDOM = "random dictionary"


def umap_figure(
    panels: Sequence[Panel],
    embeddings: Sequence[Float[np.ndarray, "d_sae 2"]],
    random: Float[np.ndarray, "random_rows 2"],
    *,
    settings: str,
) -> Drawn:
    """UMAP of each decoder, and of a random dictionary (the study's Figure 18).

    Args:
        panels: SAEs, labelled as they shall be: the study's titles count layers from 1.
        embeddings: `umap_embedding` of each decoder.
        random: of a random dictionary of the same shape.
        settings: of the UMAP, for the note: metric, neighbours and seed.
    """
    check_panels(panels, embeddings=embeddings)
    figure, grid = panel_grid([*(panel.label for panel in panels), _RANDOM], share_x=False)
    tables = []
    for axes, panel, places in zip(grid, panels, embeddings, strict=False):
        live = panel.feature("active") > 0
        _scatter(axes, places[~live], _DEAD)
        _scatter(axes, places[live], SERIES[0])
        columns = {"feature": np.arange(len(places)), "umap_1": places[:, 0], "umap_2": places[:, 1]}
        tables.append(numbers_of(panel, {**columns, "live": live}))
    _scatter(grid[-1], random, SERIES[1])
    tables.append(_random_numbers(random, tables[0].schema))
    _without_ticks(grid)
    label_figure(
        figure,
        titled("Decoder directions in two dimensions (UMAP)", panels),
        "UMAP-1",
        "UMAP-2",
        notes=[_umap_note(panels, settings)],
        keys=[
            _dot("live feature", SERIES[0]),
            _dot("dead feature", _DEAD),
            _dot("random direction", SERIES[1]),
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def joint_umap_figure(
    panels: Sequence[Panel],
    embedding: Float[np.ndarray, "rows 2"],
    random: Float[np.ndarray, "random_rows 2"],
    *,
    settings: str,
) -> Drawn:
    """UMAP of all decoders together, a colour per SAE, beside that of random dictionaries of their shapes.

    Args:
        panels: SAEs.
        embedding: `umap_embedding` of their decoders, one after the other.
        random: of random dictionaries, one after the other.
        settings: of the UMAP, for the note.
    """
    check_panels(panels)
    sizes = [len(panel.features) for panel in panels]
    for name, places in (("embedding", embedding), ("random", random)):
        if len(places) != sum(sizes):
            raise SaeSweepError(f"{len(places)} rows of {name} for {sum(sizes)} features of a joint UMAP")
    figure, grid = panel_grid(["decoders", "random dictionaries"], share_x=False, row=3.2)
    colours, parts = panel_colours(len(panels)), np.cumsum(sizes)[:-1]
    tables = []
    order = np.random.default_rng(0).permutation(sum(sizes))  # so that no SAE hides those before it
    dots = np.repeat(colours, sizes, axis=0)[order]
    for axes, places, kind in zip(grid, (embedding, random), ("decoder", "random"), strict=True):
        _scatter(axes, places[order], dots)
        for panel, part in zip(panels, np.split(places, parts), strict=True):
            columns = {"feature": np.arange(len(part)), "umap_1": part[:, 0], "umap_2": part[:, 1]}
            tables.append(numbers_of(panel, columns, dictionary=kind))
    _without_ticks(grid)
    label_figure(
        figure,
        titled("All decoder directions together in two dimensions (UMAP)", panels),
        "UMAP-1",
        "UMAP-2",
        notes=[_umap_note(panels, settings)],
        keys=[_dot(escaped(panel.label), colour) for panel, colour in zip(panels, colours, strict=True)],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _scatter(axes: Axes, places: Float[np.ndarray, "n 2"], colour: Any) -> None:
    """Small dots; `colour` is one for all, or a row per dot."""
    axes.scatter(places[:, 0], places[:, 1], s=_DOT, alpha=0.6, linewidths=0, color=colour, rasterized=True)


def _without_ticks(grid: Sequence[Axes]) -> None:
    """Leave out the numbers of the axes, which mean nothing, and keep their scales equal."""
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")


def _umap_note(panels: Sequence[Panel], settings: str) -> str:
    dead = count_note(panels, features=True).replace("dead ones, which never fire, are not drawn", "dead")
    return f"{dead}; {settings}"


def _random_numbers(places: Float[np.ndarray, "n 2"], schema: pyarrow.Schema) -> pyarrow.Table:
    columns = {
        "panel": [_RANDOM] * len(places),
        "run": [None] * len(places),
        "feature": np.arange(len(places)),
        "umap_1": places[:, 0],
        "umap_2": places[:, 1],
        "live": [None] * len(places),
    }
    return pyarrow.table(columns, schema=schema)


def position_features_figure(rows: Sequence[PositionRow], unshared: Sequence[UnsharedRow] = ()) -> Drawn:
    """Share of position features by layer under each change of the positional embeddings, and among the
    features that the next layer does not share, beside all of the layer.

    Args:
        rows: `position_rows` of SAEs that differ in their layer only.
        unshared: `unshared_rows` of them.

    Raises:
        SaeSweepError: if there are none, or two for the same layer and change.
    """
    _check_rows(rows)
    figure = new_figure(7.0 if unshared else 4.6, 3.0)
    grid = figure.subplots(1, 2 if unshared else 1, squeeze=False, sharex=True)[0]
    _draw_shares(grid[0], rows)
    if unshared:
        _draw_differences(grid[1], unshared)
    layers = sorted({row.layer for row in rows})
    for axes in grid:
        tidy(axes)
        axes.set_xticks(layers)
    names = list(dict.fromkeys(row.sae for row in rows))
    tokens = sorted({row.tokens for row in rows})
    live = sorted({row.live for row in rows})
    notes = [
        f"n = {_ends(live)} live features, {_ends(tokens)} tokens after the first position; "
        "bars: 95 % bootstrap intervals over sequences" + (", right: over features" if unshared else "")
    ]
    if any(row.undertrained for row in rows) or any(row.undertrained for row in unshared):
        notes.append("hollow: too many features still match their start (undertrained, or fine-tuned)")
    changes = [change for change in CHANGES if any(row.positions == change for row in rows)]
    label_figure(
        figure,
        f"Features that follow the position\n{escaped(runs_name(names))}",
        "layer",
        "",
        notes=notes,
        keys=[_dot(f"positions {CHANGES[change]}", COLOURS[change]) for change in changes],
    )
    return Drawn(figure, _row_numbers(rows, unshared))


def _check_rows(rows: Sequence[PositionRow]) -> None:
    if not rows:
        raise SaeSweepError("a figure of position features needs at least one tested SAE")
    seen: dict[tuple[int, str], str] = {}
    for row in rows:
        other = seen.setdefault((row.layer, row.positions), row.sae)
        if other != row.sae:
            raise SaeSweepError(
                f"{other} and {row.sae} read the same layer: draw them in two figures of position features"
            )


def _draw_shares(axes: Axes, rows: Sequence[PositionRow]) -> None:
    for number, change in enumerate(CHANGES):
        there = [row for row in rows if row.positions == change]
        _with_intervals(
            axes,
            [row.layer + 0.12 * (number - 1) for row in there],
            [[row.share, row.low, row.high] for row in there],
            COLOURS[change],
            [row.undertrained for row in there],
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of live features (%)", fontsize=8, color=INK)
    axes.set_title("position features", fontsize=8, color=INK)


def _draw_differences(axes: Axes, unshared: Sequence[UnsharedRow]) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.8)
    _with_intervals(
        axes,
        [row.layer for row in unshared],
        [[row.difference, row.low, row.high] for row in unshared],
        SERIES[3],
        [row.undertrained for row in unshared],
    )
    axes.set_ylabel("difference (percentage points)", fontsize=8, color=INK)
    axes.set_title("among those without a match in the next layer,\nminus among all", fontsize=8, color=INK)


def _with_intervals(
    axes: Axes,
    layers: Sequence[float],
    values: Sequence[Sequence[float]],
    colour: str,
    undertrained: Sequence[bool | None],
) -> None:
    """Points in per cent with their intervals, hollow if undertrained; what is not a number is not drawn."""
    if not layers:
        return
    middle, low, high = 100 * np.array(values, dtype=float).T
    axes.vlines(layers, low, high, color=colour, linewidth=1.2)
    axes.plot(layers, middle, "o-", color=colour, markersize=3.5, linewidth=0.6)
    weak = np.array([bool(one) for one in undertrained])
    if weak.any():
        places = np.array(layers)[weak]
        axes.plot(places, middle[weak], "o", color=colour, markersize=3.5, markerfacecolor="white")


def _row_numbers(rows: Sequence[PositionRow], unshared: Sequence[UnsharedRow]) -> pyarrow.Table:
    shares = [
        {
            "run": row.sae,
            "layer": row.layer,
            "drawn": f"share, positions {row.positions}",
            **_interval(row, row.share),
        }
        for row in rows
    ]
    differences = [
        {
            "run": row.sae,
            "layer": row.layer,
            "drawn": "difference",
            **_interval(row, row.difference),
        }
        for row in unshared
    ]
    return pyarrow.Table.from_pylist(shares + differences)


def _interval(row: PositionRow | UnsharedRow, value: float) -> Mapping[str, float | bool | None]:
    return {"value": value, "low": row.low, "high": row.high, "undertrained": row.undertrained}


def _ends(numbers: Sequence[int]) -> str:
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"


def _dot(label: str, colour: Any) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=4, color=colour, label=label)
