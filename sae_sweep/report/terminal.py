"""Summary on the terminal at the end of a sweep: the runs, what moves the features, and the matrix."""

import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_sweep.analysis import SEVERAL, Comparison, KeyContrast, KeySummary
from sae_sweep.analysis.position_table import PositionRow
from sae_sweep.config import MatchingConfig
from sae_sweep.config.pasted import shown_path
from sae_sweep.report.answer import is_undertrained, near_start
from sae_sweep.report.formatting import (
    MIXED,
    TextTable,
    count,
    marked,
    mixed_note,
    short_labels,
    start_mark,
    start_notes,
)

_NARROWEST = 40
"""Characters of the narrowest terminal that the text is made for."""
_NARROWEST_LABEL = 12
"""Characters below which the label of a matrix row says nothing."""
_UNKNOWN = "-"
_MEASURED = {
    "expl.var": "expl.var: R² on held-out tokens, SAE-input space.",
    "rare": "rare: R² on the rarest of them.",
    "CE rec.": "CE rec.: cross-entropy recovered from zero ablation.",
    "init": "init: share of features still within the threshold of the run's own start.",
}
"""What the columns of the table of runs hold, said of those that fit."""


@dataclass(frozen=True)
class RunLine:
    """A run in the summary, finished or not."""

    name: str
    status: str
    """pending, running, interrupted, done, failed or damaged."""
    tokens: int | None = None
    """SAE inputs it was trained on."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the final evaluation; empty if there was none."""
    init_match: float | None = None
    """Share of features that match the SAE's own start."""
    mixed: bool = False
    """Whether part of it was trained with other numerics."""
    start: str = ""
    """Label of the SAE that it is fine-tuned from; empty if its start was drawn."""
    short: str = ""
    """What tells it apart from the others, shown where names do not fit."""


def terminal_summary(
    runs: Sequence[RunLine], comparison: Comparison | None = None, *, width: int | None = None
) -> str:
    """Plain text, no line wider than the terminal.

    Args:
        runs: in the order of the table.
        comparison: comparison of the finished runs; None if there are fewer than two.
        width: in characters; by default the terminal's, or 100 if there is none.
    """
    width = max(_NARROWEST, width or shutil.get_terminal_size(fallback=(100, 24)).columns)
    parts = [_runs(runs, comparison, width)]
    if comparison is not None and comparison.summaries:
        parts.append(_summaries(comparison, runs, width))
    if comparison is not None and comparison.rows:
        parts.append(_matrix(comparison, width))
    return "\n\n".join(part for part in parts if part)


def position_text(rows: Sequence[PositionRow], *, width: int | None = None) -> str:
    """Share of position features of each SAE and change of the positional embeddings, with its interval.

    Args:
        rows: in the order of the table.
        width: as in `terminal_summary`.
    """
    width = max(_NARROWEST, width or shutil.get_terminal_size(fallback=(100, 24)).columns)
    names = list(dict.fromkeys(row.sae for row in rows))
    table = TextTable(
        ["SAE", "layer", "positions", "live", "follow it", "of live", "95% interval"], left={0, 2}
    )
    labels = dict(zip(names, short_labels(names), strict=True)) if len(names) > 1 else {}
    for row in rows:
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        table.add(
            [
                labels.get(row.sae, row.sae),
                str(row.layer),
                row.positions,
                f"{row.live:,}",
                f"{row.position_features:,}",
                (f"{row.share:.1%}" if row.live else "-") + ("*" if row.undertrained else ""),
                interval if row.live else "-",
            ]
        )
    notes = [
        "Features that follow the position: omega² above 0.1 and above that of permuted positions. "
        "Intervals: bootstrap over sequences."
    ]
    if any(row.undertrained for row in rows):
        notes.append("* too many features still match what they started from: undertrained, or fine-tuned.")
    return "\n".join(["Position", *table.lines(width, drop=(6, 3, 4)), *_notes(notes, width)])


def files_text(files: Mapping[str, Path]) -> str:
    """The files that are worth opening, each on a line that can be pasted."""
    longest = max(map(len, files), default=0)
    return "\n".join(["Files", *(f"  {what:<{longest}}  {shown_path(path)}" for what, path in files.items())])


def _runs(runs: Sequence[RunLine], comparison: Comparison | None, width: int) -> str:
    limit = comparison.undertrained_above if comparison is not None else MatchingConfig.undertrained
    tuned = any("start_explained_variance" in run.metrics for run in runs)
    rare = ["rare"] if tuned else []
    heads = ["run", "tokens", "expl.var", *rare, "CE rec.", "L0", "alive", "init", "status"]
    table = TextTable(heads, left={0, len(heads) - 1})
    for run in runs:
        table.add([cell for head, cell in _run_cells(run, limit).items() if head in heads])
    if table.width > width and len(runs) > 1:
        shorts = [run.short for run in runs]
        table.rename(shorts if all(shorts) else short_labels([run.name for run in runs]))
    dropped = ("tokens", "L0", "alive", "CE rec.", *rare)
    lines = table.lines(width, drop=tuple(map(heads.index, dropped)))
    notes = [" ".join(note for column, note in _MEASURED.items() if column in lines[0])]
    if tuned:
        notes.append(
            "a→b: a is of the SAE that the run is fine-tuned from, on the same text; b is the run's."
        )
    notes += start_notes([run.init_match for run in runs], [run.start for run in runs], limit)
    if any(run.mixed for run in runs):
        notes.append(mixed_note())
    return "\n".join(["Runs", *lines, *_notes(notes, width)])


def _run_cells(run: RunLine, limit: float) -> dict[str, str]:
    """Cells of a run by column."""
    metrics = run.metrics
    alive, dead = metrics.get("alive"), metrics.get("dead")
    share = alive / (alive + dead) if alive is not None and dead is not None else None
    return {
        "run": run.name,
        "tokens": _UNKNOWN if run.tokens is None else count(run.tokens),
        "expl.var": _after_start(run, "explained_variance"),
        "rare": _after_start(run, "explained_variance_rare"),
        "CE rec.": _after_start(run, "ce_recovered_zero"),
        "L0": _number(metrics.get("l0"), ".1f"),
        "alive": _number(share, ".1%"),
        "init": _number(run.init_match, ".1%") + start_mark(run.init_match, limit, run.start),
        "status": marked(run.status, run.mixed),
    }


def _after_start(run: RunLine, metric: str) -> str:
    """A metric of a run, behind that of the SAE that it is fine-tuned from."""
    own, start = _number(run.metrics.get(metric), ".3f"), run.metrics.get(f"start_{metric}")
    return own if start is None else f"{_number(start, '.3f')}→{own}"


def _summaries(comparison: Comparison, runs: Sequence[RunLine], width: int) -> str:
    live = any(summary.live_ratio is not None for summary in comparison.summaries)
    heads = ["differ only in", "pairs", "matched", "95% interval", "range of pairs", "MMCS"]
    table = TextTable([*heads, *(["live only"] if live else []), "values"], left={0, 6 + live})
    for summary in comparison.summaries:
        table.add(_summary_cells(summary, live))
    told = any(summary.trained for summary in comparison.summaries)
    title = "What moves the features" if told else "What runs share that differ in one key"
    title += f" (matched: cosine > {comparison.threshold:g}, both directions averaged)"
    notes = [_sentence(contrast) for contrast in _contrasts(comparison)]
    notes += _not_told(comparison, runs)
    notes.append(
        "Intervals: bootstrap over the features of these SAEs; the range shows how training runs differ."
    )
    if any(summary.mixed for summary in comparison.summaries):
        notes.append(
            f"{MIXED} with mixed runs, which were trained with other numerics for a part of the time."
        )
    return "\n".join(
        [
            *_notes([title], width),
            *table.lines(width, drop=(len(heads) + live, 5, 4, 3)),
            *_notes(notes, width),
        ]
    )


def _summary_cells(summary: KeySummary, live: bool) -> list[str]:
    name = "(more than one)" if summary.key == SEVERAL else summary.key
    trained = summary.pairs - summary.undertrained
    pairs = f"{trained} of {summary.pairs}" if 0 < trained < summary.pairs else str(summary.pairs)
    return [
        name,
        marked(pairs + "*" * (not summary.trained), summary.mixed),
        f"{summary.ratio:.1%}",
        f"{_percent(summary.low)} to {_percent(summary.high)}",
        f"{_percent(summary.lowest)} to {_percent(summary.highest)}",
        f"{summary.mmcs:.3f}",
        *([_number(summary.live_ratio, ".1%")] if live else []),
        ", ".join(summary.values),
    ]


def _contrasts(comparison: Comparison) -> list[KeyContrast]:
    """All contrasts; with more than three keys, only each key against the next (the rest is on disk)."""
    keys = [summary.key for summary in comparison.summaries if summary.key != SEVERAL and summary.trained]
    if len(keys) <= 3:
        return list(comparison.contrasts)
    wanted = set(zip(keys[1:], keys, strict=False))
    return [contrast for contrast in comparison.contrasts if (contrast.key, contrast.other) in wanted]


def _not_told(comparison: Comparison, runs: Sequence[RunLine]) -> list[str]:
    """What no sentence is about, because runs still match their start, and what would be enough."""
    if not any(summary.undertrained for summary in comparison.summaries):
        return []
    limit = f"{comparison.undertrained_above:.0%}"
    lost = [summary for summary in comparison.summaries if not summary.trained]
    if not lost:
        why = near_start(comparison.summaries)
        return [f"Pairs with {why} run are left out, as they may match only because of their start."]
    keys = " or ".join(summary.key for summary in lost if summary.key != SEVERAL) or "more than one key"
    note = (
        f"* No conclusion about {keys}: all these pairs have {near_start(lost)} run, and may match only "
        f"because of what it started from. Enough would be runs whose init is at most {limit}"
    )
    more = f": raise tokens{_budgets(runs, comparison.undertrained_above)}, or optimizer.lr."
    return [note + (more if is_undertrained(lost) else ", or runs from scratch.")]


def _budgets(runs: Sequence[RunLine], limit: float) -> str:
    """What the undertrained runs were trained on, and what was enough for another run, as a clause."""
    drawn = [run for run in runs if not run.start]
    known = [(run.tokens, run.init_match) for run in drawn if run.tokens and run.init_match is not None]
    short = [tokens for tokens, match in known if match > limit]
    enough = [tokens for tokens, match in known if match <= limit]
    had = f" (they had {count(max(short))}" if short else ""
    if had and enough:
        had += f"; {count(min(enough))} was enough for another run" * (min(enough) > max(short))
    return f"{had})" if had else ""


def _sentence(contrast: KeyContrast) -> str:
    text = (
        f"Changing {contrast.other} moves more features than changing {contrast.key}: "
        f"{100 * contrast.difference:.1f} points fewer match "
        f"(95% interval {100 * contrast.low:.1f} to {100 * contrast.high:.1f})"
    )
    return marked(text + (", which may be chance." if contrast.low <= 0 else "."), contrast.mixed)


def _matrix(comparison: Comparison, width: int) -> str:
    """The matrix as text, or nothing where its columns do not fit."""
    labels = short_labels(comparison.names, comparison.keys)
    numbers = [str(i) for i in range(1, len(labels) + 1)]
    heads = list(map(marked, numbers, comparison.mixed))
    table = TextTable(["%", *heads, "start"], left={0})
    limit = comparison.undertrained_above
    marks = [
        start_mark(match, limit, start)
        for match, start in zip(comparison.init_matches, comparison.starts, strict=True)
    ]
    for i, label in enumerate(labels):
        cells = [
            "." if math.isnan(share) else f"{100 * share:.0f}{mark or marks[i]}"
            for share, mark in zip(comparison.ratios[i], marks, strict=True)
        ]
        own = f"{100 * comparison.init_matches[i]:.0f}{marks[i]}"
        table.add([marked(f"{numbers[i]:>2} {label}", comparison.mixed[i]), *cells, own])
    if table.least_width(_NARROWEST_LABEL, drop=(len(labels) + 1,)) > width:
        return ""
    title = "Share of the row's features (%) found in the column"
    return "\n".join([*_notes([title], width), *table.lines(width, drop=(len(labels) + 1,))])


def _notes(notes: Sequence[str], width: int) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, width)]


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None or math.isnan(value) else format(value, form)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
