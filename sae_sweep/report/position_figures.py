"""Figures by position in the sequence: mean activation, its deviation and its periods, and losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sae_sweep.analysis.spectrum import Spectrum
from sae_sweep.config import SaeSweepError, escaped
from sae_sweep.report.panels import (
    ACTIVATION_UNIT,
    CHANGES,
    Drawn,
    Panel,
    check_panels,
    count_note,
    label_figure,
    numbers_of,
    panel_colours,
    panel_grid,
    titled,
)
from sae_sweep.report.style import INK, MUTED, SERIES, log_scale, new_figure, tidy

COLOURS = dict(zip(CHANGES, SERIES, strict=False))
SMOOTHED = 10
"""Positions of a running mean, as in the study."""
STUDY_L1 = 0.004
"""What the study multiplies L1 with in the SAE loss of its Figure 17, and in that figure alone."""
_POSITION = "position in the sequence (tokens)"
_NAMED_PEAKS = 2
"""Periods that are written beside their peaks."""


def activation_figure(panels: Sequence[Panel], *, first: bool = False) -> Drawn:
    """Mean activation by position (the study's Figures 7 to 9), under each change of the embeddings.

    Args:
        panels: SAEs.
        first: whether the first position and special tokens such as BOS are drawn, on a log axis.
    """
    check_panels(panels)
    figure, grid = panel_grid([panel.label for panel in panels])
    tables = []
    for axes, panel in zip(grid, panels, strict=True):
        for change in panel.changes:
            curve = mean_activation(panel, change, first=first)
            _draw_curve(axes, curve, COLOURS[change], smooth=not first)
            tables.append(_curve_numbers(panel, change, curve, "mean_activation"))
        if first:
            log_scale(axes.yaxis)
        _mark_context(axes, panel)
    what = "with the first position and special tokens" if first else "without the first position"
    label_figure(
        figure,
        titled(f"Mean activation by position, {what}", panels),
        _POSITION,
        f"mean non-zero activation ({ACTIVATION_UNIT})",
        notes=[count_note(panels), _line_note(panels, smooth=not first)],
        keys=_change_keys(panels),
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def mean_activation(
    panel: Panel, change: str = "none", *, first: bool = False
) -> Float[np.ndarray, " positions"]:
    """Mean non-zero activation by position, NaN where nothing fires.

    Args:
        panel: an SAE.
        change: of the positional embeddings.
        first: whether the first position and special tokens count.
    """
    mean, active = panel.at("mean", change), panel.at("active", change)
    if not first:
        mean[0] = np.nan
        return mean
    special = panel.at("special_active", change)
    sums = np.nan_to_num(mean) * active + np.nan_to_num(panel.at("special_mean", change)) * special
    fired = active + special
    return np.divide(sums, fired, out=np.full(len(sums), np.nan), where=fired > 0)


def running_mean(values: Float[np.ndarray, " n"], width: int = SMOOTHED) -> Float[np.ndarray, " n"]:
    """Mean of `width` neighbours, the value among them; NaN where one of them is missing."""
    if len(values) < width:
        return np.full(len(values), np.nan)
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    before = width // 2
    return np.pad(means, (before, width - 1 - before), constant_values=np.nan)


def spectrum_figure(panels: Sequence[Panel], spectra: Sequence[Mapping[str, Spectrum]]) -> Drawn:
    """Amplitude of each period of the mean activation, against permuted positions.

    Args:
        panels: SAEs.
        spectra: of each panel, by change of the positional embeddings: of `mean_activation`.
    """
    check_panels(panels, spectra=spectra)
    if not any(spectra):
        raise SaeSweepError("no spectrum to draw: the curves have too few positions")
    figure, grid = panel_grid([panel.label for panel in panels])
    tables = []
    for axes, panel, of_changes in zip(grid, panels, spectra, strict=True):
        for change, found in of_changes.items():
            _draw_spectrum(axes, found, COLOURS[change], named=change == "none")
            columns = {
                name: getattr(found, name).numpy()
                for name in ("periods", "amplitude", "null_99", "passes", "stands_out")
            }
            tables.append(numbers_of(panel, columns, positions=change))
        log_scale(axes.xaxis)
        log_scale(axes.yaxis)
    keys = [
        *_change_keys(panels),
        Line2D(
            [], [], color=MUTED, linestyle=":", linewidth=1, label="99th percentile of permuted positions"
        ),
        _dot("peak above it", filled=False),
        _dot("above that of their largest amplitude"),
    ]
    label_figure(
        figure,
        titled("Periods in the mean activation by position", panels),
        "period (positions)",
        f"amplitude of the mean activation ({ACTIVATION_UNIT})",
        notes=[count_note(panels)],
        keys=keys,
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _draw_spectrum(axes: Axes, found: Spectrum, colour: str, *, named: bool) -> None:
    periods, amplitude = found.periods.numpy(), found.amplitude.numpy()
    passes, stands_out = found.passes.numpy(), found.stands_out.numpy()
    axes.plot(periods, amplitude, color=colour, linewidth=0.9)
    axes.plot(periods, found.null_99.numpy(), color=colour, linewidth=0.8, linestyle=":")
    axes.plot(periods[passes], amplitude[passes], "o", color=colour, markersize=2.6, markerfacecolor="white")
    axes.plot(periods[stands_out], amplitude[stands_out], "o", color=colour, markersize=2.6)
    if named:
        high = np.flatnonzero(stands_out)
        for peak in high[np.argsort(-amplitude[high])][:_NAMED_PEAKS]:
            axes.annotate(
                f"{periods[peak]:.3g}", (periods[peak], amplitude[peak]), (-3, 2),
                textcoords="offset points", fontsize=6, color=INK, ha="right",
            )  # fmt: skip


def spread_figure(panels: Sequence[Panel]) -> Drawn:
    """Standard deviation against mean of the activations, a dot per position (the study's Figure 14)."""
    check_panels(panels)
    figure, grid = panel_grid([panel.label for panel in panels], share_x=False)
    tables, dots = [], None
    last = max(panel.length for panel in panels) - 1
    for axes, panel in zip(grid, panels, strict=True):
        mean, std, positions = mean_activation(panel), panel.at("std"), np.arange(panel.length)
        dots = axes.scatter(
            mean[1:], std[1:], c=positions[1:], cmap="viridis", vmin=1, vmax=last, s=4, linewidths=0
        )
        tables.append(numbers_of(panel, {"position": positions[1:], "mean": mean[1:], "std": std[1:]}))
    if dots is not None:
        bar = figure.colorbar(dots, ax=grid, pad=0.015, fraction=0.03, aspect=30)
        bar.set_label("position in the sequence (tokens)", fontsize=8)
        bar.ax.tick_params(labelsize=7, length=3)
        bar.outline.set_visible(False)  # a spine; the stubs call it a property
    label_figure(
        figure,
        titled("Mean and deviation of the activations at each position except the first", panels),
        f"mean of the non-zero activations at a position ({ACTIVATION_UNIT})",
        f"their standard deviation ({ACTIVATION_UNIT})",
        notes=[count_note(panels)],
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def lm_loss_figure(panel: Panel, name: str) -> Drawn:
    """Next-token cross-entropy of the language model by position, under each change (Figure 15).

    Args:
        panel: any of the SAEs that read the same text, which do not change this loss.
        name: of the language model and the text, for the title.
    """
    figure, (axes,) = panel_grid(["language model"])
    tables = []
    for change in panel.changes:
        curve = panel.at("ce_clean", change)
        _draw_curve(axes, curve, COLOURS[change])
        tables.append(_curve_numbers(panel, change, curve, "ce"))
    _mark_context(axes, panel)
    label_figure(
        figure,
        f"Loss of the language model by position\n{escaped(name)}",
        _POSITION,
        "cross-entropy (nats per token)",
        notes=[f"n = {panel.tokens:,} tokens", _line_note([panel])],
        keys=_change_keys([panel]),
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def sae_loss_figure(
    panels: Sequence[Panel], changes: Sequence[str] = ("none",), *, ce: bool = True, l1: float = 0.0
) -> Drawn:
    """Loss with the SAEs spliced in, and their own loss, by position: a line per SAE (Figures 16 and 17).

    Args:
        panels: SAEs.
        changes: a column of plots each.
        ce: whether the language model's loss is drawn above the SAEs' own.
        l1: what the sum of activations is multiplied with in the SAE loss: 0, or the study's in Figure 17.
    """
    check_panels(panels)
    _check_changes(panels, changes)
    title = "Loss with the SAE spliced in, and loss of the SAE" if ce else "Loss of the SAE"
    rows = {"ce_sae": "cross-entropy with the SAE\n(nats per token)"} if ce else {}
    rows["loss"] = f"squared error + {l1:g} L1" if l1 else "squared error,\nmean over d_in (SAE input)"
    figure = new_figure(max(2.5 * len(changes), 4.6), 1.8 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), len(changes), sharex=True, sharey="row", squeeze=False)
    tables = [
        _draw_losses(dict(zip(rows, column, strict=True)), panels, change, l1)
        for column, change in zip(grid.T, changes, strict=True)
    ]
    for axes, label in zip(grid[:, 0], rows.values(), strict=True):
        axes.set_ylabel(label, fontsize=8, color=INK)
    for axes, change in zip(grid[0], changes, strict=True):
        axes.set_title(f"positions {CHANGES[change]}", fontsize=8, color=INK)
    label_figure(
        figure,
        titled(title, panels),
        _POSITION,
        "",
        notes=[
            count_note(panels),
            _line_note(panels, "lines:"),
        ],
        keys=_panel_keys(panels),
    )
    return Drawn(figure, pyarrow.concat_tables(tables))


def _check_changes(panels: Sequence[Panel], changes: Sequence[str]) -> None:
    there = {change for panel in panels for change in panel.changes}
    for change in changes:
        if change not in there:
            raise SaeSweepError(
                f"no SAE was analysed with positions {change}: there is {', '.join(sorted(there))}"
            )


def _draw_losses(rows: Mapping[str, Axes], panels: Sequence[Panel], change: str, l1: float) -> pyarrow.Table:
    """A column of plots, for one change; an SAE that was not read under it has no line."""
    tables = []
    for axes in rows.values():
        tidy(axes)
        axes.tick_params(which="both", labelsize=7)
        _mark_context(axes, panels[0])
    for style, panel in zip(_panel_styles(len(panels)), panels, strict=True):
        if change not in panel.changes:
            continue
        columns = {"position": np.arange(panel.length)}
        for row, axes in rows.items():
            curve = panel.at(row, change) if row == "ce_sae" else _sae_loss(panel, change, l1)
            columns |= {row: curve, f"{row}_running_mean": running_mean(curve)}
            axes.plot(columns[f"{row}_running_mean"] if _long(curve) else curve, linewidth=1, **style)
        tables.append(numbers_of(panel, columns, positions=change))
    return pyarrow.concat_tables(tables)


def _sae_loss(panel: Panel, change: str, l1: float) -> Float[np.ndarray, " positions"]:
    return panel.at("mse", change) + l1 * panel.at("l1", change)


def _long(curve: Float[np.ndarray, " n"]) -> bool:
    """Whether there is something to see in its running mean."""
    return len(curve) >= 3 * SMOOTHED


def _draw_curve(axes: Axes, curve: Float[np.ndarray, " n"], colour: str, *, smooth: bool = True) -> None:
    if not smooth or not _long(curve):
        axes.plot(curve, color=colour, linewidth=1)
        return
    axes.plot(curve, color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(running_mean(curve), color=colour, linewidth=1.2)


def _curve_numbers(panel: Panel, change: str, curve: Float[np.ndarray, " n"], name: str) -> pyarrow.Table:
    columns = {"position": np.arange(len(curve)), name: curve, f"{name}_running_mean": running_mean(curve)}
    return numbers_of(panel, columns, positions=change)


def _mark_context(axes: Axes, panel: Panel) -> None:
    """A line where the positions pass the context that the SAE was trained on."""
    if panel.trained is not None and panel.trained < panel.length:
        axes.axvline(panel.trained - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))


def _context_note(panels: Sequence[Panel]) -> str:
    passed = sorted({panel.trained for panel in panels if panel.trained and panel.trained < panel.length})
    if not passed:
        return ""
    return f"vertical line: end of the training context ({', '.join(map(str, passed))} tokens)"


def _line_note(panels: Sequence[Panel], lines: str = "thick lines:", *, smooth: bool = True) -> str:
    long = smooth and any(_long(panel.at("tokens")) for panel in panels)
    running = f"{lines} running means of {SMOOTHED} positions" if long else ""
    return "; ".join(filter(None, (running, _context_note(panels))))


def _panel_styles(count: int) -> list[dict[str, Any]]:
    """Colours from dark to light, every second line broken."""
    return [
        {"color": colour, "linestyle": (0, (4, 1)) if number % 2 else "-"}
        for number, colour in enumerate(panel_colours(count))
    ]


def _panel_keys(panels: Sequence[Panel]) -> list[Artist]:
    styles = _panel_styles(len(panels))
    return [
        Line2D([], [], linewidth=1.4, label=escaped(panel.label), **style)
        for panel, style in zip(panels, styles, strict=True)
        if len(panels) > 1
    ]


def _change_keys(panels: Sequence[Panel]) -> list[Artist]:
    """Lines of a legend; none if there is only one kind."""
    there = [change for change in CHANGES if any(change in panel.changes for panel in panels)]
    if there == ["none"]:
        return []
    return [
        Line2D([], [], color=COLOURS[change], linewidth=1.4, label=f"positions {CHANGES[change]}")
        for change in there
    ]


def _dot(label: str, *, filled: bool = True) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker="o", markersize=3.5, color=MUTED,
        markerfacecolor=MUTED if filled else "white", label=label,
    )  # fmt: skip
