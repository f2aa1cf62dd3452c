"""The study's tables as Markdown: readable as they are, footnotes below the cells they belong to."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from sae_sweep.report.formatting import mixed_note
from sae_sweep.report.markdown import code, inline
from sae_sweep.study.answers import Answer
from sae_sweep.study.labels import BLOCKS, MIXED, UNDERTRAINED, Marked, StudySetup, marks, name, row_label
from sae_sweep.study.published import Footnote, published
from sae_sweep.study.runs import StudyRun
from sae_sweep.study.table2 import FOLLOWS, Surplus, Table2Row
from sae_sweep.study.tables import CellResult, StudyTables

_UNKNOWN = "-"
_FEW_SETTINGS = 6


def table1_markdown(tables: StudyTables, setup: StudySetup) -> str:
    """Table 1: measured and published values, in per cent."""
    heads = [
        *("setting", "compared", "text", "measured [95 %]", "live only", "published", "difference"),
        *("n", "start", "remarks"),
    ]
    rows = [_table1_row(result) for result in tables.table1]
    return _document(
        "Table 1: share of features that have a match, %",
        [inline(setup.sentence()), _source(), _how_matched(tables), _COLUMNS],
        _table(heads, rows, left=(0, 1, 2, 9)),
        [
            *_notes(tables.table1, tables),
            *_footnotes(note for result in tables.table1 for note in result.footnotes),
            *_choices(tables.table1),
            *_list("SAEs of the study that several runs fit:", list(map(inline, tables.notes))),
            *_list("Finished runs that are left out:", list(map(inline, setup.left_out))),
        ],
    )


_COLUMNS = (
    "Interval: bootstrap over the features that are counted; it does not cover what another training run "
    "would give. Live only: dead features of both left out. Difference: measured minus published, percentage "
    "points. n: features counted. Start: share that still matches the own initial dictionary, SAE counted / "
    "the other."
)


def _source() -> str:
    study = published()
    return f"Published: {study.title}, {study.date:%Y-%m-%d}."


def _table1_row(result: CellResult) -> list[str]:
    cell, measured = result.cell, result.measured
    first = [BLOCKS[cell.block], row_label(cell), name(cell.column) if cell.column else "both"]
    published_value = f"{cell.published:.2f}" + _marks(result.footnotes)
    if measured is None:
        return [*first, *(_UNKNOWN,) * 2, published_value, *(_UNKNOWN,) * 3, _remarks(result)]
    interval = f"{100 * measured.ratio:.2f} [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"
    return [
        *first,
        interval + marks(result, " "),
        _percent(measured.live_ratio),
        published_value,
        f"{result.difference:+.2f}",
        f"{measured.n:,}",
        _starts(result.counted, result.sought_in),
        _remarks(result),
    ]


def _starts(*runs: StudyRun | None) -> str:
    return " / ".join(f"{100 * run.init_match:.1f}" for run in runs if run is not None)


def _remarks(result: CellResult | Table2Row) -> str:
    remarks = [f"no run: {inline('; '.join(result.missing))}"] if result.missing else []
    remarks += [f"the runs differ in {inline('; '.join(result.differs))}"] if result.differs else []
    return "; ".join(remarks)


def runs_markdown(results: Sequence[CellResult]) -> str:
    """The two runs of each cell of Table 1, and the direction."""
    cells = [(result.cell.key, result.counted, result.sought_in) for result in results]
    return _runs(["cell", "features of", "found in"], cells)


def table2_runs_markdown(rows: Sequence[Table2Row]) -> str:
    """The two runs of each cell of Table 2."""
    return _runs(["cell", "large", "small"], [(row.key, row.large, row.small) for row in rows])


def _runs(heads: Sequence[str], cells: Sequence[tuple[str, StudyRun | None, StudyRun | None]]) -> str:
    rows = [[key, _run(a), _run(b)] for key, a, b in cells if a is not None and b is not None]
    if not rows:
        return ""
    return "\n".join(["", "## Runs of the cells", "", *_table(heads, rows, (0, 1, 2)), ""])


def _run(run: StudyRun) -> str:
    return code(run.name) + (f" {MIXED}" if run.mixed else "")


def table2_markdown(tables: StudyTables, setup: StudySetup) -> str:
    """Table 2: printed numbers, those that follow from the published Table 1, and measured ones."""
    heads = [
        *("sizes", "text", "measured [95 %]", "% of small", "live only", "printed", "% of small"),
        *("difference", "from Table 1", "n", "start", "remarks"),
    ]
    return _document(
        "Table 2: matched features of the large dictionary beyond those of the small one",
        [
            inline(setup.sentence()),
            "F_large * r(large in small) - F_small * r(small in large), in features, and in per cent of the "
            "small dictionary, which can be compared where d_in differs. Live only: dead features of both "
            "left out. Difference: measured minus printed, features. From Table 1: what the published "
            "Table 1 gives. n: features, large / small. Start: share that still matches the own initial "
            "dictionary, large / small, %.",
        ],
        _table(heads, [_table2_row(row) for row in tables.table2], left=(0, 1, 11)),
        [
            *_notes(tables.table2, tables),
            *_footnotes(note for row in tables.table2 for note in row.footnotes),
            *_list(
                "Chosen where the study leaves it open:", list(dict.fromkeys(r.choice for r in tables.table2))
            ),
        ],
    )


def _table2_row(row: Table2Row) -> list[str]:
    small, large = (int(size) for size in row.row.split("-"))
    base = published().baseline.d_in
    measured = row.measured
    verdict = "" if row.verdict == FOLLOWS else f"printed: {row.verdict}"
    return [
        f"x{small // base} and x{large // base}",
        name(row.column),
        _surplus(measured) + marks(row, " "),
        _UNKNOWN if measured is None else f"{100 * measured.features / measured.small:.1f}",
        _UNKNOWN if measured is None or measured.live is None else f"{measured.live:,.0f}",
        f"{row.printed}{_marks(row.footnotes)}",
        f"{100 * row.printed / small:.1f}",
        _UNKNOWN if row.difference is None else f"{row.difference:+,.0f}",
        f"{row.recomputed:.1f}",
        _UNKNOWN if measured is None else f"{measured.large:,} / {measured.small:,}",
        _UNKNOWN if measured is None else _starts(row.large, row.small),
        "; ".join(remark for remark in (verdict, _remarks(row)) if remark),
    ]


def _surplus(measured: Surplus | None) -> str:
    if measured is None:
        return _UNKNOWN
    return f"{measured.features:,.0f} [{measured.low:,.0f}, {measured.high:,.0f}]"


def figure13_markdown(tables: StudyTables, k: int, setup: StudySetup) -> str:
    """One matrix of Figure 13: row = the later layer, whose features are counted."""
    results = {(r.cell.counted.layer, r.cell.sought_in.layer): r for r in tables.figure13[k]}
    layers = sorted({layer for pair in results for layer in pair})
    rows = [
        [str(later), *(_cell(results.get((later, earlier))) for earlier in layers[:-1])]
        for later in layers[1:]
    ]
    missing = {facts for result in results.values() for facts in result.missing}
    return _document(
        f"Figure 13, k={k}: share of the later layer's features found in an earlier layer, %",
        [inline(setup.sentence()), _how_matched(tables), "Row: the later layer. Column: the earlier one."],
        _table(["", *map(str, layers[:-1])], rows, left=()),
        [
            *_notes(tables.figure13[k], tables),
            *_list("Runs, every layer one:", _layer_runs(tables.figure13[k])),
            f"`figure13_k{k}.csv` has for every cell the two runs, the interval, the live ratio and n.",
            "",
            *_list("Pairs whose runs differ in more than the layer:", _differing_pairs(tables.figure13[k])),
            *_choices(tables.figure13[k]),
            *_list("No run for:", list(map(inline, sorted(missing)))),
        ],
    )


def _layer_runs(results: Sequence[CellResult]) -> list[str]:
    """The names of the runs with a star for the layer."""
    runs = (run for result in results for run in (result.counted, result.sought_in) if run is not None)
    return [code(one) for one in dict.fromkeys(re.sub(rf"_L{run.layer}_", "_L*_", run.name) for run in runs)]


def _differing_pairs(results: Sequence[CellResult]) -> list[str]:
    counts = Counter("; ".join(result.differs) for result in results if result.differs)
    return [f"{inline(text)}: {count}" for text, count in counts.items()]


def _cell(result: CellResult | None) -> str:
    if result is None:
        return ""
    if result.measured is None:
        return _UNKNOWN
    return f"{100 * result.measured.ratio:.1f}" + marks(result)


def answers_markdown(answers: Sequence[Answer], tables: StudyTables) -> str:
    """All answers to whether the dataset matters more than the seed, one per row."""
    heads = ["way", "runs", "dataset", "seed", "difference [95 %]", "pairs", "so", "remarks"]
    return _document(
        "Does the dataset matter more than the seed?",
        [
            "Mean share of features that have a match (%), over pairs that differ in the dataset and over "
            "pairs that differ in the seed; difference in percentage points, below 0 if the dataset moves "
            "more.",
            "As in the study: its dataset cells and its seed cells at the baseline, one direction, all "
            "features, whatever the runs start from and were trained on. Controlled: pairs of runs that "
            "differ in nothing else, equal budgets, both directions averaged, live features only, in "
            "settings that have both kinds of pair, every setting with equal weight. Intervals: bootstrap "
            "over the features of these SAEs, not over what other training runs would give.",
        ],
        _table(heads, [_answer_row(answer) for answer in answers], left=(0, 1, 6, 7)),
        [
            *_notes(answers, tables),
            *_list("Settings of the controlled rows:", [_settings(one) for one in answers if one.settings]),
        ],
    )


def _settings(answer: Answer) -> str:
    """Number of settings that a controlled row averages over, with their names if they are few."""
    count = len(answer.settings)
    few = count <= _FEW_SETTINGS
    which = "; ".join(answer.settings) if few else "dataset_vs_seed.csv names them"
    text = f"{inline(answer.where)}: {count} setting{'s' if count > 1 else ''} ({inline(which)})"
    if not answer.settings_left_out:
        return text
    return f"{text}; left out, with one kind of pair only: {answer.settings_left_out}"


def _answer_row(answer: Answer) -> list[str]:
    pairs = answer.dataset.pairs + answer.seed.pairs
    missing = (*answer.dataset.missing, *answer.seed.missing)
    counts = {"undertrained": answer.undertrained, "mixed": answer.mixed}
    remarks = [f"{count} of {pairs} pairs {what}" for what, count in counts.items() if count]
    remarks += [f"missing: {inline(', '.join(missing))}"] if missing else []
    return [
        answer.way,
        inline(answer.where),
        _percent(answer.dataset.ratio),
        _percent(answer.seed.ratio),
        _difference(answer) + marks(answer, " "),
        f"{answer.dataset.pairs} / {answer.seed.pairs}",
        answer.larger + marks(answer, " "),
        "; ".join(remarks),
    ]


def _difference(answer: Answer) -> str:
    if answer.difference is None:
        return _UNKNOWN
    text = f"{100 * answer.difference:+.1f}"
    if answer.low is None or answer.high is None:
        return text
    return f"{text} [{100 * answer.low:+.1f}, {100 * answer.high:+.1f}]"


def _how_matched(tables: StudyTables) -> str:
    text = f"Matched: the best cosine of decoder rows is above {tables.threshold:g}."
    study = published().threshold
    return text if math.isclose(tables.threshold, study) else f"{text} The study's threshold is {study:g}."


def _notes(results: Iterable[Marked], tables: StudyTables) -> list[str]:
    """What the marks mean that any of the results has."""
    undertrained = (
        f"{UNDERTRAINED} undertrained: more than {tables.undertrained_above:.0%} of the features of one of "
        "the SAEs still match the dictionary it started from, and may match others for that reason alone."
    )
    found = "".join(map(marks, results))
    notes = {UNDERTRAINED: undertrained, MIXED: mixed_note(MIXED)}
    return [line for mark, note in notes.items() if mark in found for line in (note, "")]


def _marks(notes: Iterable[Footnote]) -> str:
    return "".join(f"[^{note.mark}]" for note in notes)


def _footnotes(notes: Iterable[Footnote]) -> list[str]:
    lines = [line for note in sorted(set(notes)) for line in (f"[^{note.mark}]: {note.text}", "")]
    return ["On the published numbers:", "", *lines] if lines else []


def _choices(results: Sequence[CellResult]) -> list[str]:
    blocks: dict[str, list[str]] = {}
    for result in results:
        blocks.setdefault(result.cell.choice, []).append(BLOCKS.get(result.cell.block, "layers"))
    lines = [f"{', '.join(dict.fromkeys(names))}: {choice}" for choice, names in blocks.items()]
    return _list("Chosen where the study leaves it open:", lines)


def _list(head: str, lines: Sequence[str]) -> list[str]:
    return [head, "", *(f"- {line}" for line in lines), ""] if lines else []


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None or math.isnan(share) else f"{100 * share:.2f}"


def _document(title: str, head: Sequence[str], table: Sequence[str], foot: Sequence[str]) -> str:
    paragraphs = [line for paragraph in head for line in (paragraph, "")]
    return "\n".join([f"# {title}", "", *paragraphs, *table, "", *foot]).rstrip() + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """A Markdown table: columns padded except the last, numbers to the right."""
    widths = [max(3, *(len(row[i]) for row in [heads, *rows])) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join([*padded[:-1], cells[-1]])} |"

    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    rule[-1] = rule[-1][:3] if len(heads) - 1 in left else "--:"
    return [line(heads), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]
