"""Families of features, and measures of two SAEs, on the terminal."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence

from sae_sweep.analysis.correlation import Correlation
from sae_sweep.analysis.families import Families
from sae_sweep.analysis.family_keys import KeyRow
from sae_sweep.analysis.measured import Measured, PairMeasure
from sae_sweep.analysis.measures import MEASURES
from sae_sweep.analysis.recovery import Recovery
from sae_sweep.report.formatting import TextTable

_NARROWEST = 40
"""Characters of the narrowest terminal that the text is made for."""
_TOGETHER = 0.7
"""Correlation above which features are counted."""
_MOST_VALUES = 6
"""Values of a key that have lines of their own."""


def families_text(found: Families, rows: Sequence[KeyRow], *, width: int | None = None) -> str:
    """Kinds of families with their shares, intervals and nulls, and what can be concluded from them.

    Args:
        found: families of one hook.
        rows: their kinds.
        width: in characters; by default the terminal's, or 100 if there is none.
    """
    width = _width(width)
    count, largest = len(found.sizes), int(found.sizes[0]) if len(found.sizes) else 0
    title = (
        f"Families: features that several SAEs share ({count:,} in {len(found.runs)} SAEs, the largest in "
        f"{largest}; {sum(found.orphans):,} of {sum(found.nodes):,} features are in none)"
    )
    table = TextTable(["families", "of", "number", "share", "95% interval", "by chance"], left={0, 1})
    for row in _shown(rows):
        table.add(_cells(row))
    notes = [_sentence(row) for row in _telling(rows)] or _nothing_told(rows)
    notes.append(
        "Universal: in at least nine tenths of the SAEs. Common: in at least half of those of every value. "
        "Only: in at least half of those of one value, and in no other. Intervals: bootstrap over families; "
        "by chance: presence shuffled, with the sizes of families and SAEs kept (95% range)."
    )
    if found.undertrained:
        notes.append(
            f"Left out: {len(found.undertrained)} that still match what they started from (undertrained, or "
            "fine-tuned)."
        )
    lines = table.lines(width, drop=(5, 4))
    return "\n".join([*textwrap.wrap(title, width), *lines, *_wrapped(notes, width)])


def measures_text(measured: Measured, *, width: int | None = None) -> str:
    """How two SAEs match by each measure, in both directions, beside each null.

    Args:
        measured: what `measure_pairs` found for one pair.
        width: as in `families_text`.
    """
    width = _width(width)
    rows = [row for row in measured.pairs if row.features == measured.pairs[0].features]
    nulls = list(dict.fromkeys(row.chance for row in rows))
    table = TextTable(["measure", "of", "value", "95% interval", *filter(None, nulls)], left={0, 1})
    cells: dict[tuple[str, str], dict[str, PairMeasure]] = {}
    for row in rows:
        cells.setdefault((row.measure.measure, row.measure.direction), {})[row.chance] = row
    for (name, direction), by_null in cells.items():
        found = next(iter(by_null.values())).measure.found
        null = [by_null[chance].measure.null.value for chance in nulls if chance]
        interval = f"{found.low:.3f} to {found.high:.3f}"
        side = "a" if direction == "a_in_b" else "b"
        table.add([name, side, f"{found.value:.3f}", interval, *(f"{value:.3f}" for value in null)])
    live = {row.measure.measure: row.measure.found.value for row in measured.pairs if row.features == "live"}
    notes = [f"{name}: {MEASURES[name]}." for name in dict.fromkeys(name for name, _ in cells)]
    if live.keys() & {"ratio"} and rows[0].features == "all":
        notes.append("Without dead features: measures.parquet.")
    if any(nulls):
        notes.append(
            f"{', '.join(filter(None, nulls))}: the value with such a dictionary in the other's place."
        )
    title = f"Features of a = {rows[0].a} and b = {rows[0].b}"
    lines = table.lines(width, drop=(3,))
    return "\n".join([*textwrap.wrap(title, width), *lines, *_wrapped(notes, width)])


def correlation_text(found: Correlation) -> str:
    """How far the features of two SAEs have partners that fire on the same tokens.

    Args:
        found: what `correlate` found.
    """
    table = TextTable(["fire together", "of", "mean of the best", "above 0.7"], left={0, 1})
    for name, best in (("Pearson", found.pearson), ("Jaccard", found.jaccard)):
        for side, values in (("a", best.values_a), ("b", best.values_b)):
            known = values[~values.isnan()]
            mean, above = (f"{one.double().mean().item():.3f}" for one in (known, known > _TOGETHER))
            table.add([name, side, mean, above])
    notes = [f"Over {found.tokens:,} tokens of the held-out text of a, features that fire on them."]
    if count := len(found.pairs_pearson):
        pearson, jaccard = (one.double().mean() for one in (found.pairs_pearson, found.pairs_jaccard))
        notes.append(
            f"The {count:,} pairs that are mutual nearest neighbours by decoder above the threshold: mean "
            f"Pearson {pearson:.3f}, mean Jaccard {jaccard:.3f}."
        )
    return "\n".join([*table.lines(_width(None)), *_wrapped(notes, _width(None))])


def recovery_text(measured: Measured, rows: Sequence[Recovery], *, width: int | None = None) -> str:
    """How many true features of synthetic activations the SAEs and their families found.

    Args:
        measured: each SAE against the truth.
        rows: what the families recovered; empty if there are none.
        width: as in `families_text`.
    """
    width = _width(width)
    means: dict[str, dict[str, list[float]]] = {}
    for row in measured.pairs:
        if row.features == measured.pairs[0].features:
            of_measure = means.setdefault(row.measure.measure, {"a_in_b": [], "b_in_a": []})
            of_measure[row.measure.direction].append(row.measure.found.value)
    table = TextTable(["measure", "true features found", "features that are true"], left={0})
    for name, of_measure in means.items():
        cells = (f"{sum(one) / len(one):.3f}" if one else "-" for one in of_measure.values())
        its, true = cells
        table.add([name, true, its])
    parts = ["\n".join(["Truth (means over the SAEs)", *table.lines(width)])]
    if rows:
        families = TextTable(
            ["families", "of", "number", "right", "precision", "true", "found by all", "recall"], left={0, 1}
        )
        for one in rows:
            of = f"dataset {one.dataset}" if one.dataset else "all SAEs"
            counts = (f"{count:,}" for count in (one.families, one.right))
            known = (f"{one.of_all:,}", f"{one.features:,}")
            families.add([one.kind, of, *counts, f"{one.precision:.3f}", *known, f"{one.recall:.3f}"])
        note = "Recall: of the true features of that kind that every SAE found which could (found by all)."
        parts.append("\n".join([*families.lines(width), *_wrapped([note], width)]))
    return "\n\n".join(parts)


def _width(width: int | None) -> int:
    return max(_NARROWEST, width or shutil.get_terminal_size(fallback=(100, 24)).columns)


def _shown(rows: Sequence[KeyRow]) -> list[KeyRow]:
    """Rows of the table; a key of many values has one for all of them together."""
    counts = Counter(row.key for row in rows if row.value)
    return [row for row in rows if not row.value or counts[row.key] <= _MOST_VALUES]


def _cells(row: KeyRow) -> list[str]:
    of = {"universal": "all SAEs", "common": f"every {row.key}"}.get(row.kind)
    return [
        row.kind,
        of or (f"{row.key} {row.value}" if row.value else f"one {row.key}"),
        f"{row.families:,}",
        f"{row.share:.1%}",
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        f"{100 * row.null:.1f} ({100 * row.null_low:.1f} to {100 * row.null_high:.1f})" if row.key else "-",
    ]


def _telling(rows: Sequence[KeyRow]) -> list[KeyRow]:
    """Keys with more families of one value alone than chance gives, the strongest first."""
    found = [row for row in rows if row.kind == "only" and not row.value and row.low > row.null_high]
    return sorted(found, key=lambda row: row.null - row.share)


def _sentence(row: KeyRow) -> str:
    return (
        f"{row.share:.1%} of the families live in one {row.key} only, and {row.null:.1%} would by chance: "
        f"these features depend on {row.key}."
    )


def _nothing_told(rows: Sequence[KeyRow]) -> list[str]:
    keys = [row.key for row in rows if row.kind == "only" and not row.value]
    if not keys:
        return []
    return [f"Families that live in one {' or one '.join(keys)} alone cannot be told from chance."]


def _wrapped(notes: Sequence[str], width: int) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, width)]
