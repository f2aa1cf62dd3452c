"""What figures of features are drawn from, a panel per SAE, and how a figure is written with its numbers."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import pyarrow
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_sweep.config import SaeSweepError, escaped
from sae_sweep.report.formatting import number_span
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.style import INK, MUTED, give_empty_log_axes_a_range, new_figure, save, tidy

CHANGES = {"none": "unchanged", "zero": "zeroed", "shuffle": "shuffled"}
"""What was done to the positional embeddings, in words."""
ACTIVATION_UNIT = "SAE-input units"
_WIDTH = 7.0
"""Inches: the text width of a page."""
_COLUMNS = 4
_ROW = 1.5
"""Inches of a row of panels."""
_AROUND = 0.6
"""Inches of a figure's title."""
_X_LABEL = 0.17
_KEY_LINE, _NOTE_LINE = 0.16, 0.145
"""Inches of a line of the legend, and of a line of the notes."""
_CHARACTERS_PER_INCH = 14
"""Characters per inch of a legend's text; notes are smaller and titles larger."""
_KEY_INCHES = 0.5
"""Inches of the sign of a legend's entry."""
_NAME_CHARACTERS = 100
_DARKEST, _LIGHTEST = 0.0, 0.9
"""Part of viridis that lines are drawn in: its yellow is too light on white."""


@dataclass(frozen=True)
class Panel:
    """An SAE in a figure. Raises SaeSweepError for tables of another version."""

    label: str
    """What tells it from the others: `layer 3`."""
    run: str
    """Name of its run."""
    features: pyarrow.Table
    """Its `firing.parquet`: a row per feature."""
    positions: pyarrow.Table
    """Its `positions.parquet`: a row per change of the positional embeddings and position."""
    trained: int | None = None
    """Tokens per sequence in training; None if unknown."""

    def __post_init__(self) -> None:
        columns = {*self.features.column_names, *self.positions.column_names}
        missing = [
            name for name in ("active", "decile_9", "positions", "special_active") if name not in columns
        ]
        if missing:
            raise SaeSweepError(
                f"{self.run}: its analysis has no column {missing[0]!r}: run task=analyse again"
            )
        if "none" not in self.changes:
            raise SaeSweepError(f"{self.run}: nothing by unchanged positions: run task=analyse again")

    def feature(self, column: str) -> Float[np.ndarray, " d_sae"]:
        """A statistic of the features; NaN where it is undefined."""
        return self.features[column].to_numpy().astype(float)

    def at(self, column: str, change: str = "none") -> Float[np.ndarray, " positions"]:
        """A statistic by position under a change of the positional embeddings; NaN where it is undefined."""
        chosen = np.array(self.positions["positions"].to_pylist()) == change
        return self.positions[column].to_numpy()[chosen].astype(float)

    @property
    def changes(self) -> list[str]:
        """Changes that there are numbers of, the unchanged embeddings first."""
        there = set(self.positions["positions"].to_pylist())
        return [change for change in CHANGES if change in there]

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return len(self.at("tokens"))

    @property
    def tokens(self) -> int:
        """Tokens that were read and count."""
        return int(self.at("tokens").sum())

    @property
    def dead(self) -> int:
        """Features that never fired."""
        return int((self.feature("active") == 0).sum())


class Drawn(NamedTuple):
    """A figure, and a table of the numbers that are drawn in it."""

    figure: Figure
    numbers: pyarrow.Table


class DrawnFiles(NamedTuple):
    """Files of a figure."""

    numbers: Path
    png: Path
    svg: Path


def write_drawn(folder: Path, name: str, drawn: Drawn) -> DrawnFiles:
    """Write a figure as NAME.png and NAME.svg into `folder`, and its numbers as NAME.parquet.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    return DrawnFiles(
        numbers=write_parquet(folder / f"{name}.parquet", drawn.numbers),
        png=save(drawn.figure, folder / f"{name}.png"),
        svg=save(drawn.figure, folder / f"{name}.svg"),
    )


def check_panels(panels: Sequence[Panel], **per_panel: Sequence[object]) -> None:
    """Refuse a figure of nothing, and arguments that are not one per panel.

    Raises:
        SaeSweepError: saying which.
    """
    if not panels:
        raise SaeSweepError("a figure needs at least one analysed SAE: run task=analyse first")
    for name, values in per_panel.items():
        if len(values) != len(panels):
            raise SaeSweepError(f"{len(values)} {name} for {len(panels)} panels of a figure")


def panel_grid(
    labels: Sequence[str], *, share_x: bool = True, share_y: bool = False, row: float = _ROW
) -> tuple[Figure, list[Axes]]:
    """A figure with one small plot per label, at most four in a row, or five where one would be left over."""
    alone = len(labels) > 2 * _COLUMNS and len(labels) % _COLUMNS == 1  # the last one, in a row of its own
    columns = min(len(labels), _COLUMNS + alone)
    rows = math.ceil(len(labels) / columns)
    single = len(labels) == 1
    figure = new_figure(4.6 if single else _WIDTH, (2.6 if single else row * rows) + _AROUND)
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False).flatten()
    for axes, label in zip(grid, labels, strict=False):
        tidy(axes)
        axes.tick_params(which="both", labelsize=7)
        axes.set_title("" if single else escaped(label), fontsize=8, color=INK, pad=3)
    for empty, above in zip(grid[len(labels) :], grid[len(labels) - columns :], strict=False):
        empty.remove()
        above.xaxis.set_tick_params(labelbottom=True)
    return figure, list(grid[: len(labels)])


def label_figure(
    figure: Figure,
    title: str,
    x: str,
    y: str,
    *,
    notes: Sequence[str] = (),
    keys: Sequence[Artist] = (),
) -> None:
    """Write a title above the plots, one label for all x axes and one for all y axes, and below them a legend
    and notes, for which the figure is made higher."""
    give_empty_log_axes_a_range(figure)
    width, height = figure.get_size_inches()
    characters = int(_CHARACTERS_PER_INCH * width)
    lines = [line for note in notes for line in textwrap.wrap(note, int(1.15 * characters))]
    heading = [line for part in title.split("\n") for line in textwrap.wrap(part, int(0.85 * characters))]
    longest = max((len(str(key.get_label())) for key in keys), default=0)
    rows = math.ceil(len(keys) / max(1, int(width / (longest / _CHARACTERS_PER_INCH + _KEY_INCHES))))
    legend = _KEY_LINE * rows
    foot = legend + _NOTE_LINE * len(lines) + 0.06
    whole = height + foot + _X_LABEL
    figure.set_size_inches(width, whole)
    share, plots = foot / whole, (foot + _X_LABEL) / whole
    cast(Any, figure.get_layout_engine()).set(rect=(0, plots, 1, 1 - plots))
    figure.suptitle("\n".join(heading), fontsize=9, color=INK)
    figure.supxlabel(x, y=share, va="bottom", fontsize=8, color=INK).set_in_layout(False)
    figure.supylabel(y, fontsize=8, color=INK)
    if keys:
        figure.legend(
            handles=list(keys), loc="upper center", bbox_to_anchor=(0.5, share),
            ncols=math.ceil(len(keys) / rows), fontsize=7.5, frameon=False, borderaxespad=0, borderpad=0.2,
            labelspacing=0.3,
        ).set_in_layout(False)  # fmt: skip
    below = share * (1 - legend / foot)
    text = figure.text(0.5, below, "\n".join(lines), ha="center", va="top", fontsize=7, color=MUTED)
    text.set_in_layout(False)


def titled(title: str, panels: Sequence[Panel]) -> str:
    """A title with the runs' names in its second line."""
    return f"{title}\n{escaped(runs_name([panel.run for panel in panels]))}"


def runs_name(names: Sequence[str]) -> str:
    """The name of one run, or what the names of several share: `gpt2_L…_k16 (12 SAEs)`."""
    if len(set(names)) == 1:
        return names[0]
    start = _shared_start(names)
    end = _shared_start([name[len(start) :][::-1] for name in names])[::-1]
    shared = f"{start}…{end}" if start or end else ", ".join(names)
    return f"{shared[:_NAME_CHARACTERS]} ({len(names)} SAEs)"


def _shared_start(names: Sequence[str]) -> str:
    start = names[0]
    while not all(name.startswith(start) for name in names):
        start = start[:-1]
    return start


def count_note(panels: Sequence[Panel], *, features: bool = False) -> str:
    """How many tokens and features the numbers are made of, and, where asked, how many features are dead."""
    tokens = f"{number_span([panel.tokens for panel in panels])} tokens"
    sizes = number_span([len(panel.features) for panel in panels])
    if not features:
        return f"n = {tokens}, {sizes} features"
    dead = number_span([panel.dead for panel in panels])
    return f"n = {sizes} features, {tokens}; dead ones, which never fire, are not drawn: {dead}"


def panel_colours(count: int) -> list[tuple[float, ...]]:
    """Colours of lines in order, from dark to light; readable without colour, too."""
    places = np.linspace(_DARKEST, _LIGHTEST, count) if count > 1 else np.array([0.3])
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](places)]


def numbers_of(panel: Panel, columns: Mapping[str, object], **same: object) -> pyarrow.Table:
    """Rows of a figure's numbers: the panel, what is the same in all rows, and the columns."""
    table = pyarrow.table(dict(columns))
    rows = len(table)
    first = {"panel": panel.label, "run": panel.run, **same}
    names = [*first, *table.column_names]
    return pyarrow.table([*([value] * rows for value in first.values()), *table.columns], names=names)
