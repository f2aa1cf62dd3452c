"""SFR and FFR of the SAEs of each text on disk: tables, two figures, and a section of the page."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import Estimate
from sae_sweep.analysis.faithfulness import (
    ACTIVE_ABOVE,
    FREQUENT_ABOVE,
    NOISE_TOKENS,
    SHARED_ABOVE,
    TextResult,
    fake,
)
from sae_sweep.config import escaped
from sae_sweep.report.files import write_csv
from sae_sweep.report.formatting import TextTable
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Cell, Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, write_drawn
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.style import INK, SERIES, log_scale, new_figure, tidy

LEVELS = (0.0, 0.5, ACTIVE_ABOVE, 2.0, 4.0)
"""Activations above which a feature counts as active, for FFR's sensitivity."""
FREQUENT = (0.01, 0.02, 0.05, FREQUENT_ABOVE, 0.2, 0.5)
"""Shares of random tokens above which a feature is fake, for FFR's sensitivity."""
_ROW = (
    *(("setting", TEXT), ("text", TEXT), ("sampled", pyarrow.bool_()), ("undertrained", pyarrow.bool_())),
    *(("measure", TEXT), ("value", NUMBER), ("low", NUMBER), ("high", NUMBER)),
    *(("seed_low", NUMBER), ("seed_high", NUMBER), ("n", WHOLE)),
    *(("sampled_minus_this", NUMBER), ("difference_low", NUMBER), ("difference_high", NUMBER)),
)
_SENSITIVITY = (
    *(("setting", TEXT), ("text", TEXT), ("active_above", NUMBER), ("frequent_above", NUMBER)),
    ("ffr", NUMBER),
)
_TEXT = (
    "SFR: share of the pairs of the best assignment of two seeds' decoders whose cosine is above "
    f"{SHARED_ABOVE:g}. FFR: share of features whose activation is above {ACTIVE_ABOVE:g} at more than "
    f"{FREQUENT_ABOVE:.0%} of {NOISE_TOKENS:,} random tokens (FaithfulSAE, arXiv 2506.17673). 95% intervals "
    "over features; those over seeds are in faithful.csv. Nothing is concluded from SAEs that still match "
    "their start."
)


class Sensitivity(NamedTuple):
    """Activity on noise of the SAEs of one text, from which FFR follows for all constants."""

    setting: str
    text: str
    shares: Sequence[Float[Tensor, "levels d_sae"]]
    """By SAE; a row for each of `LEVELS`."""

    def ffr(self, level: float, frequent: float) -> float:
        """Mean FFR of the SAEs."""
        row = LEVELS.index(level)
        each = [fake(one[row], frequent).double().mean().item() for one in self.shares]
        return sum(each) / len(each)


def write_faithful(
    folder: Path, results: Sequence[TextResult], sensitivity: Sequence[Sensitivity]
) -> dict[str, Path]:
    """Write tables, figures and the section; returns the files that are worth opening.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    rows = [row for one in results for row in _rows(one, _sampled(results, one))]
    table = write_csv(folder / "faithful.csv", table_of_rows(rows, _ROW))
    grid = [
        {
            "setting": one.setting,
            "text": one.text,
            "active_above": level,
            "frequent_above": frequent,
            "ffr": one.ffr(level, frequent),
        }
        for one in sensitivity
        for level in LEVELS
        for frequent in FREQUENT
    ]
    write_parquet(folder / "sensitivity.parquet", table_of_rows(grid, _SENSITIVITY))
    write_drawn(folder, "faithful", _figure(results))
    write_drawn(folder, "ffr_constants", _sensitivity_figure(sensitivity))
    write_section(folder, _section(results, sensitivity))
    return {"SFR and FFR": table}


def faithful_text(results: Sequence[TextResult], width: int) -> str:
    """A table for the terminal, whose width is given in characters."""
    heads = ("setting", "text", "SAEs", "SFR (%)", "FFR (%)", "sampled - this: SFR", "FFR", "")
    table = TextTable(heads, left=(0, 1, 7))
    for one in results:
        _, _, saes, *parts = _cells(one, _sampled(results, one))
        table.add([escaped(one.setting), escaped(_label(one)), str(saes), *map(str, parts)])
    lines = table.lines(width, drop=(2, 6, 5))
    return "\n".join([*lines, *textwrap.wrap(_TEXT, width)])


def _label(one: TextResult) -> str:
    return f"{one.text} (sampled)" if one.sampled else one.text


def _sampled(results: Sequence[TextResult], one: TextResult) -> TextResult | None:
    """The text that the model sampled, of the same setting; None for itself."""
    found = (other for other in results if other.sampled and other.setting == one.setting)
    return None if one.sampled else next(found, None)


def _differences(one: TextResult, sampled: TextResult | None) -> tuple[Estimate | None, Estimate | None]:
    """SFR and FFR of the sampled text minus those of this one."""
    if sampled is None:
        return None, None
    return (sampled.sfr - one.sfr).estimate(), (sampled.ffr - one.ffr).estimate()


def _rows(one: TextResult, sampled: TextResult | None) -> list[dict[str, Any]]:
    sfr_more, ffr_more = _differences(one, sampled)
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    return [
        {
            "setting": one.setting,
            "text": one.text,
            "sampled": one.sampled,
            "undertrained": one.undertrained,
            "measure": name,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "seed_low": seeds.low,
            "seed_high": seeds.high,
            "sampled_minus_this": more and more.value,
            "difference_low": more and more.low,
            "difference_high": more and more.high,
        }
        for name, found, seeds, more in (
            ("SFR", one.sfr.estimate(), one.sfr_over_seeds, sfr_more),
            ("FFR", one.ffr.estimate(), nothing, ffr_more),
        )
    ]


def _cells(one: TextResult, sampled: TextResult | None) -> list[Cell]:
    return [
        one.setting,
        _label(one),
        len(one.runs),
        *(_percent(sample.estimate()) for sample in (one.sfr, one.ffr)),
        *("" if more is None else _percent(more, "+") for more in _differences(one, sampled)),
        "still its start" if one.undertrained else "",
    ]


def _percent(found: Estimate, sign: str = "") -> str:
    if math.isnan(found.value):
        return "-"
    return f"{100 * found.value:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def _section(results: Sequence[TextResult], sensitivity: Sequence[Sensitivity]) -> Section:
    heads = ("setting", "text", "SAEs", "SFR (%)", "FFR (%)", "SFR: sampled minus this", "FFR", "")
    grid: tuple[tuple[Cell, ...], ...] = tuple(
        (one.setting, one.text, f"{level:g}", *(100 * one.ffr(level, frequent) for frequent in FREQUENT))
        for one in sensitivity
        for level in LEVELS
    )
    columns = ("setting", "text", "active above", *(f"at over {frequent:.0%}" for frequent in FREQUENT))
    return Section(
        title="Faithfulness of the text",
        text=_TEXT,
        runs=tuple(run for one in results for run in one.runs),
        tables=(
            Table("SFR and FFR", heads, tuple(tuple(_cells(one, _sampled(results, one))) for one in results)),
            Table("FFR (%) by both of its constants", columns, grid, digits=1),
        ),
        figures={
            "faithful.png": "SFR and FFR by text",
            "ffr_constants.png": "FFR by each of its constants, the other as published",
        },
    )


def _figure(results: Sequence[TextResult]) -> Drawn:
    figure = new_figure(6.4, 0.9 + 0.28 * len(results))
    panels = figure.subplots(1, 2, sharey=True)
    numbers = []
    for axes, measure in zip(panels, ("sfr", "ffr"), strict=True):
        for y, one in enumerate(results):
            found = getattr(one, measure).estimate()
            colour = SERIES[1] if one.sampled else SERIES[0]
            axes.plot([100 * found.low, 100 * found.high], [y, y], color=colour, linewidth=1.2)
            axes.plot(100 * found.value, y, "o", color=colour, markersize=4)
            numbers.append(
                {"text": one.text, "setting": one.setting, "measure": measure.upper(), **vars(found)}
            )
        axes.set_title(measure.upper(), fontsize=8.5, color=INK)
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(left=0)
        tidy(axes)
    labels = [escaped(f"{_label(one)} {one.setting}{' *' * one.undertrained}".strip()) for one in results]
    panels[0].set_yticks(range(len(results)), labels)
    marked = any(one.undertrained for one in results)
    label_figure(
        figure,
        "SFR and FFR by text",
        "share of features (%)",
        "",
        notes=[f"Bars: 95% intervals over features.{' *: still match their start.' * marked}"],
    )
    return Drawn(figure, pyarrow.Table.from_pylist(numbers))


def _sensitivity_figure(sensitivity: Sequence[Sensitivity]) -> Drawn:
    figure = new_figure(6.4, 2.8)
    numbers = []
    by_level, by_frequency = figure.subplots(1, 2)
    for place, one in enumerate(sensitivity):
        label, colour = f"{one.text} {one.setting}".strip(), SERIES[place % len(SERIES)]
        at_levels = [one.ffr(level, FREQUENT_ABOVE) for level in LEVELS]
        at_frequencies = [one.ffr(ACTIVE_ABOVE, frequent) for frequent in FREQUENT]
        by_level.plot(LEVELS, [100 * value for value in at_levels], "o-", color=colour, markersize=3)
        percents = [100 * value for value in at_frequencies]
        by_frequency.plot(FREQUENT, percents, "o-", color=colour, markersize=3, label=escaped(label))
        numbers += [
            {"text": label, "active_above": level, "frequent_above": frequent, "ffr": value}
            for values, constants in (
                (at_levels, [(level, FREQUENT_ABOVE) for level in LEVELS]),
                (at_frequencies, [(ACTIVE_ABOVE, frequent) for frequent in FREQUENT]),
            )
            for value, (level, frequent) in zip(values, constants, strict=True)
        ]
    by_level.set_xlabel(f"activation, at over {FREQUENT_ABOVE:.0%} of tokens", fontsize=8)
    by_frequency.set_xlabel(f"share of tokens, with an activation above {ACTIVE_ABOVE:g}", fontsize=8)
    log_scale(by_frequency.xaxis)
    for axes in (by_level, by_frequency):
        axes.set_ylim(bottom=0)
        tidy(axes)
    keys = by_frequency.get_lines()
    label_figure(figure, "FFR by each of its constants", "", "features that are fake (%)", keys=keys)
    return Drawn(figure, pyarrow.Table.from_pylist(numbers))
