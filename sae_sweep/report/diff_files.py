"""How two datasets differ through SAEs, on disk: tables, a figure, and a section of the page."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
from matplotlib.lines import Line2D

from sae_sweep.analysis.contexts import NOTHING
from sae_sweep.analysis.dataset_diff import Difference, Fired
from sae_sweep.config import escaped
from sae_sweep.report.formatting import TextTable, listed, number_span, shorten
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Cell, Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, panel_grid, write_drawn
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.style import MUTED, SERIES

DISCOVERY_RATE = 0.05
"""False discovery rate below which a feature counts as different."""
SHOWN = 4
"""SAEs in the figure, on the page and on the terminal; the tables have all."""
_MOST_SHOWN = 8
"""The same, where they are trained on more datasets than `SHOWN`, and each is shown."""
_LABEL = 26
"""Characters above a panel."""
_ON_PAGE = 10
"""Features of each side on the page."""
_MOST_ROWS = 16
"""Rows of the table of SAEs above which it is folded."""
_CONTEXT_CHARACTERS = 72
_SHORTEST_CONTEXT = 20
_SPACES = re.compile(r"\s+")
_FIELDS = [field.name for field in fields(Difference)]
_CONTEXTS = (
    *(("run", TEXT), ("feature", WHOLE), ("rank", WHOLE), ("dataset", TEXT), ("place", WHOLE)),
    *(("activation", NUMBER), ("before", TEXT), ("token", TEXT), ("after", TEXT)),
)


@dataclass(frozen=True)
class Compared:
    """Two datasets through one SAE."""

    run: str
    a: Fired
    b: Fired
    found: Difference
    strings: Sequence[str]
    """Text of each token id."""
    label: str = ""
    """What tells it from the others, such as `stdlib_docs seed 42`."""
    trained_on: str = ""
    """Label of the dataset that it was trained on; empty if unknown."""

    @property
    def differs(self) -> np.ndarray:
        """Which features fire in more documents of one dataset than chance explains, [d_sae]."""
        return np.nan_to_num(self.found.documents_q, nan=1) < DISCOVERY_RATE

    def ranked(self, side: int, most: int) -> list[int]:
        """Features that differ and fire in more documents of a (side=1) or of b (side=-1), largest first."""
        order = self.found.order
        chosen = self.differs[order] & (side * self.found.documents[order] > 0)
        return order[chosen][:most].tolist()


class DiffFiles(NamedTuple):
    """Files of a comparison of two datasets."""

    features: Path
    """Parquet, a row per SAE and feature, in the order of `Difference.order`: rank and its fields."""
    contexts: Path
    """Parquet, a row per context of the features that differ most, on either side."""
    figure: Path
    section: Path


def write_diff(
    folder: Path,
    names: tuple[str, str],
    compared: Sequence[Compared],
    top: int,
    about: str = "",
    left_out: Sequence[str] = (),
) -> DiffFiles:
    """Write how two datasets differ.

    Args:
        folder: where to.
        names: of datasets a and b.
        compared: SAEs through which both are read.
        top: features of each side whose contexts are written.
        about: what the SAEs are, in words.
        left_out: lines about what is left out, for the page.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    contexts = [row for one in compared for row in _contexts(one, names, top)]
    return DiffFiles(
        write_parquet(folder / "features.parquet", pyarrow.concat_tables(map(_features, compared))),
        write_parquet(folder / "contexts.parquet", table_of_rows(contexts, _CONTEXTS)),
        write_drawn(folder, "documents", diff_figure(names, compared)).png,
        write_section(folder, _section(names, compared, about, left_out)),
    )


def chosen(compared: Sequence[Compared]) -> list[Compared]:
    """SAEs in the figure, on the page and on the terminal: of each training dataset in turn."""
    seen: Counter[str] = Counter()
    turns = []
    for place, one in enumerate(compared):
        turns.append((seen[one.trained_on], place))
        seen[one.trained_on] += 1
    most = min(_MOST_SHOWN, max(SHOWN, len(seen)))
    return [compared[place] for place in sorted(place for _, place in sorted(turns)[:most])]


def more_often(one: Compared) -> tuple[int, int]:
    """How many features fire in more documents of a, and of b, than chance explains."""
    more, less = (int((one.differs & (side * one.found.documents > 0)).sum()) for side in (1, -1))
    return more, less


def summary(names: tuple[str, str], one: Compared) -> str:
    """How many features differ, in a sentence."""
    tested = int((~np.isnan(one.found.documents_q)).sum())
    more = more_often(one)
    return (
        f"{one.run}: of {tested:,} features that fire, {more[0]:,} fire in more documents of {names[0]} and "
        f"{more[1]:,} in more of {names[1]} (false discovery rate {DISCOVERY_RATE:.0%}; "
        f"{len(one.a.tokens):,} and {len(one.b.tokens):,} documents)."
    )


def diff_text(names: tuple[str, str], one: Compared, width: int) -> str:
    """The features that differ most through an SAE, each with its strongest text; empty if none differs."""
    lines = []
    for side, (here, there) in ((1, names), (-1, names[::-1])):
        table = TextTable(["feature", "% here", "% there", "q", "strongest context"], left={4})
        room = max(_SHORTEST_CONTEXT, width - len("feature  % here  % there  0.0005  "))
        for feature in one.ranked(side, _ON_PAGE):
            shares = (one.found.documents_a[feature], one.found.documents_b[feature])[::side]
            text = _strongest_context(one, feature, here, names, room)
            cells = [f"{100 * share:.0f}" for share in shares]
            table.add([str(feature), *cells, f"{one.found.documents_q[feature]:.1g}", text])
        if one.ranked(side, 1):
            head = f"More documents of {here} (here) than of {there} (there):"
            lines += [*textwrap.wrap(escaped(head), width), *table.lines(width), ""]
    return "\n".join(lines)


def _features(one: Compared) -> pyarrow.Table:
    order = one.found.order
    columns = {name: getattr(one.found, name)[order] for name in _FIELDS}
    columns = {name: pyarrow.array(column, from_pandas=True) for name, column in columns.items()}
    ids = {"feature": order.astype(np.int32), "rank": np.arange(len(order), dtype=np.int32)}
    return pyarrow.table({"run": [one.run] * len(order), **ids, **columns})


def _contexts(one: Compared, names: tuple[str, str], top: int) -> Iterator[dict[str, Any]]:
    for side in (1, -1):
        for rank, feature in enumerate(one.ranked(side, top)):
            yield from _of_feature(one, feature, rank, names)


def _of_feature(one: Compared, feature: int, rank: int, names: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """The strongest contexts of a feature in both datasets."""
    for name, fired in zip(names, (one.a, one.b), strict=True):
        found = fired.contexts
        for row in (found.features == feature).nonzero()[:, 0].tolist():
            words = [one.strings[token] if token != NOTHING else "" for token in found.tokens[row].tolist()]
            at = fired.before
            yield {
                "run": one.run,
                "feature": feature,
                "rank": rank,
                "dataset": name,
                "place": int(found.ranks[row]),
                "activation": float(found.activations[row, at]),
                "before": "".join(words[:at]),
                "token": words[at],
                "after": "".join(words[at + 1 :]),
            }


def _strongest_context(one: Compared, feature: int, name: str, names: tuple[str, str], room: int) -> str:
    """The context in which a feature fires most, cut around its token to a line of `room` characters."""
    row = next((row for row in _of_feature(one, feature, 0, names) if row["dataset"] == name), None)
    if row is None:
        return ""
    before, token, after = (escaped(_SPACES.sub(" ", row[part])) for part in ("before", "token", "after"))
    token = f"«{shorten(token, room // 2)}»"
    left = room - len(token)
    ahead = min(len(before), max(left // 2, left - len(after)))
    behind = left - ahead
    start = before if len(before) <= ahead else "…" + before[len(before) - ahead + 1 :]
    return start.lstrip() + token + (after.rstrip() if len(after) <= behind else after[: behind - 1] + "…")


def _documents(compared: Sequence[Compared], side: Literal["a", "b"]) -> str:
    """How many documents of a dataset the SAEs read."""
    return number_span([len((one.a if side == "a" else one.b).tokens) for one in compared])


def diff_figure(names: tuple[str, str], compared: Sequence[Compared]) -> Drawn:
    """Share of documents in which each feature fires, of one dataset against the other."""
    shown = chosen(compared)
    labels = [shorten(one.label or one.run, _LABEL) for one in shown]
    figure, panels = panel_grid(labels, share_y=True)
    for axes, one in zip(panels, shown, strict=True):
        for some, colour in ((~one.differs, MUTED), (one.differs, SERIES[1])):
            shares = (one.found.documents_b[some], one.found.documents_a[some])
            axes.plot(*(100 * share for share in shares), ".", color=colour, markersize=2.5, alpha=0.6)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.6)
    label_figure(
        figure,
        "In how many documents features fire",
        f"documents of {escaped(names[1])} (%; n = {_documents(shown, 'b')})",
        f"documents of {escaped(names[0])} (%; n = {_documents(shown, 'a')})",
        keys=[
            Line2D([], [], color=colour, marker=".", linestyle="", label=label)
            for colour, label in (
                (SERIES[1], f"differs (q < {DISCOVERY_RATE})"),
                (MUTED, "no difference found"),
            )
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(map(_features, shown)))


def _section(
    names: tuple[str, str],
    compared: Sequence[Compared],
    about: str,
    left_out: Sequence[str],
) -> Section:
    shown = chosen(compared)
    tables = [
        _table(names, one, side, folded=place > 0)
        for place, one in enumerate(shown)
        for side in (1, -1)
        if one.ranked(side, 1)
    ]
    read = f"{_documents(compared, 'a')} of {names[0]} and {_documents(compared, 'b')} of {names[1]}"
    text = f"Features are counted in held-out documents, {read}."
    if len(compared) > len(shown):
        labels = listed([one.label for one in shown])
        text += f" The figure and the tables of features are those of {labels}; the files have all."
    text += "".join(f" {line.rstrip('.')}." for line in left_out)
    caption = (
        f"Share of documents ({read}) in which each feature fires, a panel per SAE; off the line, the "
        f"datasets differ. {about}"
    )
    return Section(
        f"{names[0]} against {names[1]}",
        text,
        tuple(one.run for one in compared),
        (_overview(names, compared), *tables),
        {"documents.png": caption.strip()},
    )


def _overview(names: tuple[str, str], compared: Sequence[Compared]) -> Table:
    """How many features differ through each SAE."""
    rows = tuple(
        (one.label or one.run, int((~np.isnan(one.found.documents_q)).sum()), *more_often(one))
        for one in compared
    )
    heads = ("SAE", "features that fire", *(f"in more of {name}" for name in names))
    title = f"Features that fire in more documents of one dataset (false discovery rate {DISCOVERY_RATE:.0%})"
    return Table(title, heads, rows, folded=len(rows) > _MOST_ROWS)


def _table(names: tuple[str, str], one: Compared, side: int, *, folded: bool) -> Table:
    here, found = names[0] if side == 1 else names[1], one.found
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            str(feature),
            *(100 * float(part[feature]) for part in (found.documents_a, found.documents_b)),
            f"{100 * found.documents_low[feature]:.0f} to {100 * found.documents_high[feature]:.0f}",
            f"{found.documents_q[feature]:.1g}",
            _strongest_context(one, feature, here, names, _CONTEXT_CHARACTERS),
        )
        for feature in one.ranked(side, _ON_PAGE)
    )
    columns = ("feature", *(f"{name} (%)" for name in names), "difference, 95%", "q", "strongest context")
    title = f"{one.label or one.run}: features in more documents of {here}"
    return Table(title, columns, rows, digits=0, folded=folded)
