"""How two datasets differ through SAEs, on disk: tables, a figure, and a section of the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from matplotlib.lines import Line2D

from sae_sweep.analysis.contexts import NOTHING
from sae_sweep.analysis.dataset_diff import Difference, Fired
from sae_sweep.config import escaped
from sae_sweep.report.formatting import TextTable, short_labels, shorten
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Cell, Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, panel_grid, write_drawn
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.style import MUTED, SERIES

DISCOVERY_RATE = 0.05
"""False discovery rate below which a feature counts as different."""
SHOWN = 4
"""SAEs in the figure, on the page and on the terminal; the tables have all."""
_LABEL = 26
"""Characters above a panel."""
_ON_PAGE = 10
"""Features of each side on the page."""
_CONTEXT_CHARACTERS = 100
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


def write_diff(folder: Path, names: tuple[str, str], compared: Sequence[Compared], top: int) -> DiffFiles:
    """Write how two datasets differ.

    Args:
        folder: where to.
        names: of datasets a and b.
        compared: SAEs through which both are read.
        top: features of each side whose contexts are written.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    contexts = [row for one in compared for row in _contexts(one, names, top)]
    return DiffFiles(
        write_parquet(folder / "features.parquet", pyarrow.concat_tables(map(_features, compared))),
        write_parquet(folder / "contexts.parquet", table_of_rows(contexts, _CONTEXTS)),
        write_drawn(folder, "documents", diff_figure(names, compared)).png,
        write_section(folder, _section(names, compared)),
    )


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
    if not one.differs.any():
        return ""
    table = TextTable(["feature", *(f"% of {name}" for name in names), "q", "strongest context"], left={4})
    for side, name in zip((1, -1), names, strict=True):
        for feature in one.ranked(side, _ON_PAGE):
            shares = (one.found.documents_a[feature], one.found.documents_b[feature])
            cells = [f"{100 * share:.0f}" for share in shares]
            context = _strongest_context(one, feature, name, names)
            table.add([str(feature), *cells, f"{one.found.documents_q[feature]:.1g}", context])
    return "\n".join(table.lines(width))


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


def _strongest_context(one: Compared, feature: int, name: str, names: tuple[str, str]) -> str:
    """The context in which a feature fires most in a dataset, in a line; «» around the token."""
    row = next((row for row in _of_feature(one, feature, 0, names) if row["dataset"] == name), None)
    if row is None:
        return ""
    before, after = row["before"][-_CONTEXT_CHARACTERS // 2 :], row["after"][: _CONTEXT_CHARACTERS // 2]
    return " ".join(f"{before}«{row['token']}»{after}".split())


def diff_figure(names: tuple[str, str], compared: Sequence[Compared]) -> Drawn:
    """Share of documents in which each feature fires, of one dataset against the other."""
    shown = compared[:SHOWN]
    labels = [shorten(label, _LABEL) for label in short_labels([one.run for one in shown])]
    figure, panels = panel_grid(labels, share_y=True)
    for axes, one in zip(panels, shown, strict=True):
        for chosen, colour in ((~one.differs, MUTED), (one.differs, SERIES[1])):
            shares = (one.found.documents_b[chosen], one.found.documents_a[chosen])
            axes.plot(*(100 * share for share in shares), ".", color=colour, markersize=2.5, alpha=0.6)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.6)
    label_figure(
        figure,
        "In how many documents features fire",
        f"documents of {escaped(names[1])} (%)",
        f"documents of {escaped(names[0])} (%)",
        keys=[
            Line2D([], [], color=colour, marker=".", linestyle="", label=label)
            for colour, label in ((SERIES[1], f"differs (q < {DISCOVERY_RATE})"), (MUTED, "may be equal"))
        ],
    )
    return Drawn(figure, pyarrow.concat_tables(map(_features, shown)))


def _section(names: tuple[str, str], compared: Sequence[Compared]) -> Section:
    shown = compared[:SHOWN]
    tables = tuple(_table(names, one, side) for one in shown for side in (1, -1) if one.ranked(side, 1))
    more = f" {len(compared) - len(shown)} more are in the files." if len(compared) > len(shown) else ""
    return Section(
        f"{names[0]} against {names[1]}",
        " ".join(summary(names, one) for one in shown) + more,
        tuple(one.run for one in compared),
        tables,
        {"documents.png": "Share of documents in which each feature fires; off the line, datasets differ."},
    )


def _table(names: tuple[str, str], one: Compared, side: int) -> Table:
    here, found = names[0] if side == 1 else names[1], one.found
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            str(feature),
            *(round(100 * float(part[feature]), 1) for part in (found.documents_a, found.documents_b)),
            f"{100 * found.documents_low[feature]:.0f} to {100 * found.documents_high[feature]:.0f}",
            f"{found.documents_q[feature]:.1g}",
            *(round(100 * float(part[feature]), 3) for part in (found.tokens_a, found.tokens_b)),
            _strongest_context(one, feature, here, names),
        )
        for feature in one.ranked(side, _ON_PAGE)
    )
    heads = tuple(f"{unit} of {name} (%)" for unit in ("documents", "tokens") for name in names)
    columns = ("feature", *heads[:2], "difference, 95%", "q", *heads[2:], "strongest context")
    return Table(f"{one.run}: features of {here}", columns, rows)
