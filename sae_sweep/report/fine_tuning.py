"""Fine-tuned SAEs beside the general SAE that they started from, on disk and on the page."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_sweep.analysis.fine_tuning import GENERAL, METRICS, Effect, Setting
from sae_sweep.config import escaped
from sae_sweep.config.plain import compact
from sae_sweep.report.files import write_csv
from sae_sweep.report.formatting import number_span
from sae_sweep.report.page.sections import Cell, Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, write_drawn
from sae_sweep.report.style import SERIES, new_figure, tidy

_WORDS = {
    "explained_variance": "expl. var.",
    "explained_variance_rare": "expl. var., rare",
    "ce_delta": "ΔCE",
    "alive": "alive",
    "new_features": "new",
}
_PLOTTED = {"explained_variance": "all tokens", "explained_variance_rare": "the rarest twentieth"}
_POINTS = 100
"""Differences of explained variance are in points."""


class Domain(NamedTuple):
    """SAEs of one text, fine-tuned and from scratch, that are alike in all else."""

    label: str
    """What they share that others of the sweep do not; empty for the only domain."""
    runs: tuple[str, ...]
    """Their names."""
    effects: Sequence[Effect]


def write_fine_tuning(folder: Path, domains: Sequence[Domain]) -> Path | None:
    """Write numbers, figures and a section of the page, in place of earlier ones.

    Returns the table of all numbers; None without a fine-tuned SAE.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not domains:
        return None
    figures: dict[str, str] = {}
    for number, domain in enumerate(domains, 1):
        name = f"explained_variance_{number}" if len(domains) > 1 else "explained_variance"
        drawn = Drawn(effects_figure(domain), _numbers(domain))
        figures[write_drawn(folder, name, drawn).png.name] = _titled("Explained variance", domain)
    section = Section(
        title="Fine-tuning",
        text=" ".join(map(sentence, domains)),
        runs=tuple(name for domain in domains for name in domain.runs),
        tables=tuple(table for domain in domains for table in (_levels(domain), _changes(domain))),
        figures=figures,
    )
    write_section(folder, section)
    return write_csv(folder / "fine_tuning.csv", pyarrow.concat_tables(map(_numbers, domains)))


def gained(domains: Sequence[Domain]) -> dict[str, float]:
    """Differences of explained variance between settings, by domain, settings and metric."""
    found = {}
    for domain in domains:
        for one in domain.effects:
            if one.against is not None and one.metric in _PLOTTED:
                pair = f"{_named(domain, one.setting)} against {_named(domain, one.against)}"
                found[f"{domain.label}/{pair}/{one.metric}".strip("/")] = one.value
    return found


def sentence(domain: Domain) -> str:
    """What fine-tuning changes, and what a tilt does, on all tokens and on rare ones."""
    found = []
    for one, other in _pairs(domain):
        changes = [_change(domain, one, other, metric) for metric in _PLOTTED]
        if other.tilt == GENERAL or other.start == one.start:
            found.append(f"{_named(domain, one)} against {_named(domain, other)}: {', '.join(changes)}.")
    where = f"{domain.label}: " if domain.label else ""
    unit = "Points of explained variance, with 95% intervals over orders of the data."
    return f"{where}{unit} {' '.join(found)}"


def _change(domain: Domain, one: Setting, other: Setting, metric: str) -> str:
    found = _by_metric(domain, one, other).get(metric)
    if found is None:
        return f"unknown on {_PLOTTED[metric]}"
    value, low, high = (_POINTS * number for number in (found.value, found.low, found.high))
    interval = "" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    chance = ", which may be chance," if low <= 0 <= high else ""
    return f"{value:+.1f}{interval}{chance} on {_PLOTTED[metric]}"


def effects_figure(domain: Domain) -> Figure:
    """Explained variance of each setting on all tokens and on rare ones."""
    settings = _settings(domain)
    figure = new_figure(5.6, 1.3 + 0.32 * len(settings))
    axes = figure.subplots()
    for place, one in enumerate(settings):
        for (metric, _), colour in zip(_PLOTTED.items(), SERIES, strict=False):
            if found := _by_metric(domain, one, None).get(metric):
                axes.hlines(place, found.low, found.high, color=colour)
                axes.plot(found.value, place, "o", color=colour, markersize=4.5)
    axes.set_yticks(range(len(settings)), [escaped(_named(domain, one)) for one in settings], fontsize=8)
    axes.invert_yaxis()
    tidy(axes)
    keys = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=words)
        for words, colour in zip(_PLOTTED.values(), SERIES, strict=False)
    ]
    counts = [one.runs for one in domain.effects if one.against is None and one.setting.tilt != GENERAL]
    orders = number_span(counts)
    notes = [f"Lines: 95% intervals over {orders} order{'s' * (orders != '1')} of the data."]
    title = _titled("Explained variance", domain)
    label_figure(figure, title, "explained variance", "", notes=notes, keys=keys)
    return figure


def _titled(title: str, domain: Domain) -> str:
    return f"{title}: {domain.label}" if domain.label else title


def _settings(domain: Domain) -> list[Setting]:
    return list(dict.fromkeys(one.setting for one in domain.effects if one.against is None))


def _pairs(domain: Domain) -> Iterator[tuple[Setting, Setting]]:
    """Settings that are compared with each other."""
    yield from dict.fromkeys((one.setting, one.against) for one in domain.effects if one.against is not None)


def _by_metric(domain: Domain, setting: Setting, against: Setting | None) -> dict[str, Effect]:
    chosen = (one for one in domain.effects if (one.setting, one.against) == (setting, against))
    return {one.metric: one for one in chosen}


def _named(domain: Domain, one: Setting) -> str:
    """A setting in words; a general SAE has its name where there are several."""
    several = len({setting.start for setting in _settings(domain)} - {""}) > 1
    if one.tilt == GENERAL:
        return one.start if several else "general SAE"
    start = (f"fine-tuned from {one.start}" if several else "fine-tuned") if one.start else "from scratch"
    return start if one.tilt is None else f"{start}, tilt {compact(one.tilt)}"


def _levels(domain: Domain) -> Table:
    rows = []
    for one in _settings(domain):
        known = _by_metric(domain, one, None)
        means: list[Cell] = [known[metric].value if metric in known else None for metric in METRICS]
        rows.append((_named(domain, one), float(max(found.runs for found in known.values())), *means))
    starts = ", ".join(dict.fromkeys(one.start for one in _settings(domain) if one.start))
    note = (
        f"Means over orders of the data. The general SAE is {starts}, as the runs begin with it. Rare: the "
        "rarest twentieth of the held-out tokens. New: share of features that do not match the general SAE."
    )
    return Table(
        _titled("On the text of the runs", domain), ("SAE", "runs", *_WORDS.values()), tuple(rows), note
    )


def _changes(domain: Domain) -> Table:
    words = [_WORDS[metric] for metric in (*_PLOTTED, "ce_delta")]
    columns = [column for word in words for column in (word, f"{word}, low", f"{word}, high")]
    rows = []
    for one, other in _pairs(domain):
        known, cells = _by_metric(domain, one, other), []
        for metric in (*_PLOTTED, "ce_delta"):
            cells += _interval(known.get(metric), _POINTS if metric in _PLOTTED else 1)
        runs = float(max(found.runs for found in known.values()))
        rows.append((_named(domain, one), _named(domain, other), runs, *cells))
    note = (
        "Explained variance in points, ΔCE in nats. Means of differences between SAEs of one order of the "
        "data, and from the general SAE, with 95% intervals over orders (Student's t). All read the same "
        "held-out text: the intervals say nothing about other texts."
    )
    return Table(_titled("Differences", domain), ("SAE", "against", "runs", *columns), tuple(rows), note)


def _interval(found: Effect | None, factor: float) -> list[Cell]:
    if found is None:
        return [None, None, None]
    numbers = (factor * number for number in (found.value, found.low, found.high))
    return [None if math.isnan(number) else number for number in numbers]


def _numbers(domain: Domain) -> pyarrow.Table:
    """All effects of a domain, differences in the unit of their metric."""
    records = [
        {
            "domain": domain.label,
            "sae": _named(domain, one.setting),
            "start": one.setting.start,
            "against": "" if one.against is None else _named(domain, one.against),
            "metric": one.metric,
            "value": one.value,
            "low": one.low,
            "high": one.high,
            "runs": one.runs,
        }
        for one in domain.effects
    ]
    return pyarrow.Table.from_pylist(records)
