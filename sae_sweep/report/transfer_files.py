"""The transfer matrix of a sweep on disk: a table, heat maps, and its section of the page."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from sae_sweep.config import escaped
from sae_sweep.report.formatting import TextTable, listed, number_span, short_labels, shorten
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, write_drawn
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.style import INK, grid, hatch_key, hatched, ink_on, new_figure

MEASURES = {
    "explained_variance": "explained variance",
    "mse": "MSE (SAE input)",
    "ce_delta": "ΔCE (nats)",
    "l0": "L0",
    "dead_share": "dead share",
}
"""Measures in the figure, by their columns."""
_BETTER = {"explained_variance": "more is better", "l0": ""}
"""Which end of a measure is better; of the others, the lower one."""
_OTHERS = ("explained_variance_raw", "mse_raw", "ce_clean", "ce_sae", "ce_recovered_mean", "cosine", "tokens")
_SCHEMA = (
    *(("run", TEXT), ("settings", TEXT), ("trained_on", TEXT), ("read", TEXT)),
    *(("undertrained", pyarrow.bool_()), ("d_sae", WHOLE)),
    *((name, NUMBER) for name in (*MEASURES, *_OTHERS)),
)
_MOST_WITH_TEXT = 12
"""Rows or columns above which cells hold no numbers."""
_WIDTH, _ROW, _AROUND = 7.0, 0.28, 1.0
"""Inches: the figure, a row of a heat map, and what is around a heat map."""
_NARROWEST = 6
"""Characters of the name of a dataset in the terminal, where there are many."""


@dataclass(frozen=True)
class Transferred:
    """An SAE evaluated on a dataset."""

    run: str
    keys: Mapping[str, Any]
    """Its values of the sweep's keys, except dataset and seed."""
    trained_on: str
    """Label of the dataset that it was trained on."""
    read: str
    """Label of the dataset that it is evaluated on."""
    undertrained: bool
    densities: np.ndarray
    """Share of tokens on which each feature fires, [d_sae]."""
    metrics: Mapping[str, float]
    """Those of the final evaluation (`analysis.evaluation.Evaluation`)."""

    def value(self, name: str) -> float:
        """A measure; NaN where it is undefined."""
        if name == "dead_share":
            return self.metrics["dead"] / len(self.densities)
        return self.metrics.get(name, float("nan"))


class TransferFiles(NamedTuple):
    """Files of a transfer matrix."""

    table: Path
    """Parquet, a row per SAE and dataset."""
    densities: Path
    """Parquet, a row per SAE, dataset and feature: run, read, feature, density."""
    figure: Path
    section: Path


class _Row(NamedTuple):
    """SAEs that differ in their seed alone."""

    label: str
    trained_on: str
    undertrained: bool
    cells: Mapping[str, Sequence[Transferred]]
    """By the dataset that is read."""

    def mean(self, measure: str, read: str) -> float:
        found = [one.value(measure) for one in self.cells.get(read, ())]
        return fmean(found) if found else float("nan")


def write_transfer(
    folder: Path, found: Sequence[Transferred], about: str = "", left_out: Sequence[str] = ()
) -> TransferFiles:
    """Write a transfer matrix.

    Args:
        folder: the sweep's `analysis/transfer/`.
        found: SAEs on datasets.
        about: what the SAEs are, in words.
        left_out: lines about what is left out, for the page.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    rows = _rows(found)
    table = table_of_rows([_record(one) for one in found], _SCHEMA)
    return TransferFiles(
        write_parquet(folder / "transfer.parquet", table),
        write_parquet(folder / "densities.parquet", _densities(found)),
        write_drawn(folder, "heat_maps", transfer_figure(found)).png,
        write_section(folder, _section(found, rows, about, left_out)),
    )


def transfer_text(found: Sequence[Transferred], width: int) -> str:
    """Explained variance by training and reading dataset, for the terminal."""
    rows, texts = _rows(found), _texts(found)
    room = max(_NARROWEST, (width - max(len(row.label) for row in rows)) // len(texts) - 2)
    table = TextTable(["trained on", *(shorten(text, room) for text in texts)], left={0})
    for row in rows:
        table.add([row.label, *(f"{row.mean('explained_variance', text):.3f}" for text in texts)])
    title = "Explained variance by the dataset that SAEs are trained on (rows) and read (columns)"
    lines = [*textwrap.wrap(title, width), *table.lines(width)]
    return "\n".join([*lines, *textwrap.wrap(home_and_away(found), width)])


def home_and_away(found: Sequence[Transferred]) -> str:
    """What explained variance is lost on other datasets, in a sentence; only trained SAEs count."""
    lost = lost_away(found)
    changes = list(lost.values())
    if not lost:
        return "Nothing is concluded: no SAE that trained enough was read on its own dataset and on another."
    worse = sum(change > 0 for change in changes)
    return (
        f"On a dataset other than their own, SAEs explain {fmean(changes):.3f} less of the variance on "
        f"average (from {min(changes):.3f} to {max(changes):.3f}; less in {worse} of {len(changes)} cases, "
        f"{len({run for run, _ in lost})} SAEs)."
    )


def lost_away(found: Sequence[Transferred]) -> dict[tuple[str, str], float]:
    """Explained variance at home minus that elsewhere, by run and dataset that is read; of trained SAEs."""
    trained = [one for one in found if not one.undertrained]
    home = {one.run: one.value("explained_variance") for one in trained if one.read == one.trained_on}
    return {
        (one.run, one.read): home[one.run] - one.value("explained_variance")
        for one in trained
        if one.read != one.trained_on and one.run in home
    }


def _texts(found: Sequence[Transferred]) -> list[str]:
    return list(dict.fromkeys(one.read for one in found))


def _rows(found: Sequence[Transferred]) -> list[_Row]:
    """SAEs by dataset and all keys but the seed, in the order of the datasets."""
    groups: dict[tuple[str, str], list[Transferred]] = {}
    settings, order = _settings(found), [*_texts(found), *(one.trained_on for one in found)]
    for one in sorted(found, key=lambda one: order.index(one.trained_on)):
        groups.setdefault((one.trained_on, settings[one.run]), []).append(one)
    rows = []
    for (trained_on, setting), some in groups.items():
        cells = {text: [one for one in some if one.read == text] for text in _texts(found)}
        undertrained = any(one.undertrained for one in some)
        rows.append(_Row(f"{trained_on} {setting}".strip(), trained_on, undertrained, cells))
    return rows


def _settings(found: Sequence[Transferred]) -> dict[str, str]:
    """The keys of each run other than dataset and seed, in words; runs that agree in them get the same."""
    keys = {one.run: one.keys for one in found}
    kinds = list({str(each): each for each in keys.values()}.values())
    if len(kinds) == 1:
        return dict.fromkeys(keys, "")
    words = dict(zip(map(str, kinds), short_labels([str(each) for each in kinds], kinds), strict=True))
    return {run: words[str(each)] for run, each in keys.items()}


def _record(one: Transferred) -> dict[str, Any]:
    return {
        "run": one.run,
        "settings": " ".join(f"{key}={value}" for key, value in one.keys.items()),
        "trained_on": one.trained_on,
        "read": one.read,
        "undertrained": one.undertrained,
        "d_sae": len(one.densities),
        **{name: one.value(name) for name in (*MEASURES, *_OTHERS)},
    }


def _densities(found: Sequence[Transferred]) -> pyarrow.Table:
    sizes = [len(one.densities) for one in found]
    names = {
        name: pyarrow.array(np.repeat([getattr(one, name) for one in found], sizes)).dictionary_encode()
        for name in ("run", "read")
    }
    features = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return pyarrow.table(
        names | {"feature": features, "density": np.concatenate([one.densities for one in found])}
    )


def transfer_figure(found: Sequence[Transferred]) -> Drawn:
    """Heat maps of the measures that vary: by the dataset SAEs are trained on, and by the one they read."""
    rows, texts = _rows(found), _texts(found)
    grids = {name: np.array([[row.mean(name, text) for text in texts] for row in rows]) for name in MEASURES}
    known = {name: values for name, values in grids.items() if not np.isnan(values).all()}
    flat = {name: values for name, values in known.items() if len(set(_numbers(values).values())) == 1}
    shown = {name: values for name, values in known.items() if name not in flat} or known
    columns = min(
        len(shown), 3 if len(texts) <= 3 and len(shown) != 4 else 2 if len(texts) <= _MOST_WITH_TEXT else 1
    )
    lines = math.ceil(len(shown) / columns)
    row = _ROW if len(rows) <= _MOST_WITH_TEXT else _ROW / 2
    figure = new_figure(_WIDTH, lines * (_AROUND + row * len(rows)))
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for number, (axes, (name, values)) in enumerate(zip(panels, shown.items(), strict=False)):
        _draw(axes, name, values, rows, texts)
        labels = [escaped(row.label) for row in rows] if number % columns == 0 else []
        axes.set_yticks(range(len(rows)) if labels else [], labels)
    for axes in panels[len(shown) :]:
        axes.remove()
    label_figure(
        figure,
        "SAEs trained on one dataset (row) and evaluated on another (column)",
        "read on",
        "trained on",
        notes=_notes(shown, flat, rows),
        keys=[hatch_key("still matches its own start (undertrained, or fine-tuned)")]
        * any(r.undertrained for r in rows),
    )
    numbers = [
        {"row": row.label, "trained_on": row.trained_on, "read": text, "saes": len(row.cells[text])}
        | {name: row.mean(name, text) for name in MEASURES}
        for row in rows
        for text in texts
    ]
    columns_of = (("row", TEXT), ("trained_on", TEXT), ("read", TEXT), ("saes", WHOLE))
    return Drawn(figure, table_of_rows(numbers, (*columns_of, *((name, NUMBER) for name in MEASURES))))


def _notes(
    shown: Mapping[str, np.ndarray], flat: Mapping[str, np.ndarray], rows: Sequence[_Row]
) -> list[str]:
    """What the colours and the frames mean, and the measures that are the same in all cells."""
    parts = ["Framed: on its own dataset. Numbers are means over seeds. Yellow is better."]
    if "l0" in shown:
        parts.append("L0, in grey, has no better end.")
    if any(np.isnan(values).any() for values in shown.values()):
        parts.append("White: left out.")
    parts += [
        f"Not drawn, since it is the same in all cells: {MEASURES[name]}, {min(_numbers(values).values())}."
        for name, values in flat.items()
        if name not in shown
    ]
    if len(rows) > _MOST_WITH_TEXT:
        parts.append("The numbers are in the table.")
    return [" ".join(parts)]


def _numbers(values: np.ndarray) -> dict[tuple[int, int], str]:
    """Cells with a number, as text: with as many decimals as give the largest three digits."""
    largest = np.nanmax(np.abs(values))
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0
    return {(y, x): f"{value:.{digits}f}" for (y, x), value in np.ndenumerate(values) if not np.isnan(value)}


def _draw(axes: Axes, name: str, values: np.ndarray, rows: Sequence[_Row], texts: Sequence[str]) -> None:
    low, high = np.nanmin(values), np.nanmax(values)
    scale = Normalize(low, high if high > low else low + 1)
    better = _BETTER.get(name, "less is better")
    colours = colormaps["Greys" if not better else "viridis" if better.startswith("more") else "viridis_r"]
    axes.imshow(values, cmap=colours, norm=scale, aspect="auto")
    for y, row in enumerate(rows):
        for x, text in enumerate(texts):
            if text == row.trained_on:
                axes.add_patch(_frame(x, y))
            if row.undertrained and not np.isnan(values[y, x]):
                axes.add_patch(hatched(x, y, values[y, x], colours, scale))
    if max(len(rows), len(texts)) <= _MOST_WITH_TEXT:
        for (y, x), text in _numbers(values).items():
            ink = ink_on(values[y, x], colours, scale)
            axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color=ink, zorder=6)
    axes.set_title(MEASURES[name] + f": {better}" * bool(better), fontsize=8, color=INK)
    axes.set_xticks(range(len(texts)), list(map(escaped, texts)), rotation=45, ha="right", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    grid(axes, len(rows), len(texts))


def _frame(x: int, y: int) -> Rectangle:
    """A frame inside a cell: dark with a white rim, so that it is seen on every colour."""
    frame = Rectangle((x - 0.45, y - 0.4), 0.9, 0.8, fill=False, edgecolor=INK, linewidth=1, zorder=5)
    frame.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
    return frame


def _section(
    found: Sequence[Transferred], rows: Sequence[_Row], about: str, left_out: Sequence[str]
) -> Section:
    texts = _texts(found)
    tables = tuple(
        Table(
            f"{MEASURES[name]}, by the dataset that is read",
            ("trained on", "SAEs", *texts),
            tuple(
                (
                    row.label + " (still its start)" * row.undertrained,
                    max(map(len, row.cells.values())),
                    *(_cell(row.mean(name, text)) for text in texts),
                )
                for row in rows
            ),
        )
        for name in MEASURES
    )
    tokens = number_span([int(one.metrics["tokens"]) for one in found if "tokens" in one.metrics] or [0])
    read = f"Each finished SAE is evaluated on the held-out text of {listed(texts)} ({tokens} tokens)."
    missing = "".join(f" {line.rstrip('.')}." for line in left_out)
    caption = (
        "Rows: the dataset SAEs are trained on (means over seeds). Columns: the dataset they read "
        f"({tokens} tokens)."
    )
    return Section(
        "Transfer between datasets",
        f"{home_and_away(found)} {read}{missing}",
        tuple(sorted({one.run for one in found})),
        tables,
        {"heat_maps.png": f"{caption} {about}".strip()},
    )


def _cell(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 5)
