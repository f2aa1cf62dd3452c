"""Dose-response on disk and on the page: features found again by the share of another text."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_sweep.analysis.dose import DosePoint
from sae_sweep.config import escaped
from sae_sweep.report.files import table_of, write_csv
from sae_sweep.report.formatting import number_span
from sae_sweep.report.page.sections import Cell, Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, write_drawn
from sae_sweep.report.style import SERIES, new_figure, tidy

_WORDS = {"all": "all features", "own": "its own features"}
_LINES = {"all": "-", "own": "--"}
_APART = 0.5
"""Points of share between the lines of the two texts and the share itself, so that none hides another."""
_UNDERTRAINED = "still matches its start: nothing is concluded from it"


class Ladder(NamedTuple):
    """SAEs that read two texts in different shares and are alike in all else but their seeds."""

    label: str
    """What the SAEs share that others of the sweep do not; empty for the only ladder."""
    texts: tuple[str, str]
    runs: tuple[str, ...]
    """Their names."""
    points: Sequence[DosePoint]
    about: str = ""
    """What its SAEs are, in words."""


def write_dose_response(folder: Path, ladders: Sequence[Ladder], threshold: float) -> Path | None:
    """Write curves, numbers and a section of the page for each ladder, in place of earlier ones.

    Returns the table of all points; None without a ladder.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not ladders:
        return None
    figures, tables = {}, []
    for number, ladder in enumerate(ladders, 1):
        name = f"curve_{number}" if len(ladders) > 1 else "curve"
        drawn = Drawn(dose_figure(ladder, threshold), _numbers(ladder))
        figures[write_drawn(folder, name, drawn).png.name] = _caption(ladder)
        tables.append(_table(ladder))
    table = pyarrow.concat_tables([_numbers(ladder) for ladder in ladders])
    section = Section(
        title="Dose-response",
        text=" ".join(map(sentence, ladders)),
        runs=tuple(name for ladder in ladders for name in ladder.runs),
        tables=tuple(tables),
        figures=figures,
    )
    write_section(folder, section)
    return write_csv(folder / "dose_response.csv", table)


def found_again(ladders: Sequence[Ladder]) -> dict[str, float]:
    """Share of all features of a text that are found again, by the text and its share; of trained pairs."""
    return {
        f"{ladder.label}/{ladder.texts[one.text]}/{one.share:g}".strip("/"): one.ratio
        for ladder in ladders
        for one in ladder.points
        if one.features == "all" and one.trained
    }


def sentence(ladder: Ladder) -> str:
    """What a text's share does to its features, from trained pairs; or that nothing can be said."""
    found = [_of_text(ladder, text) for text in (0, 1)]
    where = f"{ladder.label}: " if ladder.label else ""
    return where + " ".join(part for part in found if part)


def _of_text(ladder: Ladder, text: int) -> str:
    points = [one for one in ladder.points if one.text == text and one.features == "all"]
    name = ladder.texts[text]
    if not all(one.trained for one in points):
        return f"Nothing is concluded about features of {name}: runs still match their start."
    found = [
        f"{one.ratio:.1%} at {one.share:.0%}" for one in sorted(points, key=lambda one: one.share) if one.n
    ]
    if not found:
        return ""
    return (
        f"Of the features of SAEs that read {name} alone, SAEs of another seed have, by the share of {name} "
        f"in what these read: {', '.join(found)}."
    )


def _caption(ladder: Ladder) -> str:
    return (
        f"{_titled('Features found again', ladder)}. Features of SAEs that read {ladder.texts[0]} alone, and "
        f"of those that read {ladder.texts[1]} alone, sought in SAEs of another seed that read both in "
        f"different shares. {ladder.about}"
    ).strip()


def dose_figure(ladder: Ladder, threshold: float) -> Figure:
    """Share of each text's features that are found again, by the share of that text."""
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    keys = []
    for text, name in enumerate(ladder.texts):
        for features, words in _WORDS.items():
            points = [one for one in ladder.points if (one.text, one.features) == (text, features)]
            points = sorted((one for one in points if one.n), key=lambda one: one.share)
            style: Any = {"color": SERIES[text], "linestyle": _LINES[features]}
            shares = [100 * one.share + _APART * (2 * text - 1) for one in points]
            axes.plot(shares, [100 * one.ratio for one in points], linewidth=1.3, **style)
            axes.vlines(
                shares, [100 * p.low for p in points], [100 * p.high for p in points], color=SERIES[text]
            )
            for x, one in zip(shares, points, strict=True):
                fill = SERIES[text] if one.trained else "white"
                axes.plot(x, 100 * one.ratio, "o", color=SERIES[text], mfc=fill, markersize=4)
            if points:
                label = f"{escaped(name)}: {words}, n = {number_span([one.n for one in points])}"
                keys.append(Line2D([], [], label=label, linewidth=1.3, **style))
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    tidy(axes)
    label_figure(
        figure,
        _titled("Features found again in SAEs of another seed", ladder),
        "share of the features' own text in what the other SAE reads (%)",
        f"features with a match (%), cosine > {threshold:g}",
        notes=[
            "Own: another seed of that text has it, and no SAE of the other text. Upright: 95% intervals "
            "over features. Hollow: all pairs have an SAE that still matches its start."
        ],
        keys=keys,
    )
    return figure


def _titled(title: str, ladder: Ladder) -> str:
    return f"{title}: {ladder.label}" if ladder.label else title


def _numbers(ladder: Ladder) -> pyarrow.Table:
    """The points of a ladder as a table, with its label and the names of the texts."""
    table = table_of(DosePoint, ladder.points, {"text"})
    names = [ladder.texts[one.text] for one in ladder.points]
    table = table.add_column(0, "text", pyarrow.array(names, pyarrow.string()))
    return table.add_column(0, "ladder", pyarrow.array([ladder.label] * len(names), pyarrow.string()))


def _table(ladder: Ladder) -> Table:
    heads = ("features of", "which", "its share (%)", "n", "found (%)", "low", "high")
    columns = (*heads, "lowest pair", "highest pair", "pairs", "marks")
    rows = tuple(_row(ladder, one) for one in ladder.points if one.n)
    note = (
        "n features of SAEs that read one text alone, sought in SAEs of another seed. Own: another SAE of "
        "its text has it, and none of the other text; the SAE in which it is sought has no say. Intervals of "
        "95% over features; lowest and highest of the pairs. Pairs with an SAE that still matches its start "
        "are left out where there are others."
    )
    return Table(_titled("Features found again by share", ladder), columns, rows, note, folded=True)


def _row(ladder: Ladder, one: DosePoint) -> tuple[Cell, ...]:
    shares = (one.ratio, one.low, one.high, one.lowest, one.highest)
    marks = "" if one.trained else _UNDERTRAINED
    head = (ladder.texts[one.text], one.features, 100 * one.share, one.n)
    return (*head, *(100 * share for share in shares), one.pairs, marks)
