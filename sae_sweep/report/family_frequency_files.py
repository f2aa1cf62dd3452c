"""What families two datasets share, by how often their triggers occur in each: files and a section."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from matplotlib.axes import Axes

from sae_sweep.analysis.family_frequency import RATIOS, FamilyFrequency, HeldShare, Member, held_shares
from sae_sweep.config import escaped
from sae_sweep.report.formatting import shorten
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, panel_grid, write_drawn
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.report.style import INK, MUTED, SERIES

_FAMILIES = (
    *(("hook", TEXT), ("family", WHOLE), ("home", TEXT), ("other", TEXT), ("members", WHOLE)),
    *(("home_density", NUMBER), ("other_density", NUMBER), ("held", pyarrow.bool_())),
)
_SHARES = (
    *(("home", TEXT), ("other", TEXT), ("ratio_from", NUMBER), ("ratio_to", NUMBER)),
    *(("families", WHOLE), ("held", NUMBER), ("low", NUMBER), ("high", NUMBER)),
)
_LABELS = ("< 1/30", "1/30 to 1/10", "1/10 to 1/3", "1/3 to 1", "1 to 3", "> 3")
_MOST_PANELS = 20
"""Pairs of datasets in the figure."""
_NAME = 24
"""Characters of a dataset's name above a panel."""
_SMALLEST, _LARGEST, _MANY = 2.0, 6.0, 100
"""Sizes of points in points: of a single family, and of as many families or more."""


def read_members(folder: Path) -> dict[str, list[Member]]:
    """Members of the families of each hook of a sweep, by the hook's folder; none before they were followed.

    Raises:
        SaeSweepError: if a file is damaged.
    """
    found = {}
    for path in sorted(folder.rglob("members.parquet")):
        table = read_parquet(path, ("family", "run", "feature"), "write it again with task=match")
        columns = (table[name].to_pylist() for name in Member._fields)
        hook = path.parent.relative_to(folder).as_posix()
        found["" if hook == "." else hook] = [Member(*row) for row in zip(*columns, strict=True)]
    return found


def write_family_frequencies(
    folder: Path, found: Mapping[str, Sequence[FamilyFrequency]], runs: Sequence[str], about: str = ""
) -> Path:
    """Write families with their frequencies, the shares that are held, and the section; returns the figure.

    Args:
        folder: where to.
        found: families beside each other dataset, by hook.
        runs: names of the SAEs.
        about: what they are, in words.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    rows = [{"hook": hook, **one._asdict()} for hook, some in found.items() for one in some]
    shares = held_shares([one for some in found.values() for one in some])
    shares = sorted(shares, key=lambda one: (one.home, one.other))
    write_parquet(folder / "families.parquet", table_of_rows(rows, _FAMILIES))
    figure = write_drawn(folder, "held_by_frequency", frequency_figure(shares)).png
    write_section(folder, _section(found, shares, runs, about))
    return figure


def frequency_figure(shares: Sequence[HeldShare]) -> Drawn:
    """Share of each dataset's families that the other's SAEs hold, by relative frequency."""
    pairs = list(dict.fromkeys((one.home, one.other) for one in shares))
    shown = pairs[:_MOST_PANELS]
    figure, panels = panel_grid([f"{home} in {other}" for home, other in shown], share_y=True, row=1.9)
    for axes, (home, other) in zip(panels, shown, strict=True):
        some = [one for one in shares if (one.home, one.other) == (home, other)]
        _draw(axes, some)
        if len(shown) > 1:
            names = (escaped(shorten(name, _NAME)) for name in (home, other))
            axes.set_title("\nin ".join(names), fontsize=7.5, color=INK, pad=3)
    only = f"\n{escaped(pairs[0][0])} in {escaped(pairs[0][1])}" if len(pairs) == 1 else ""
    notes = [
        "Families in at least two SAEs of the first dataset; their number is above each point, whose area "
        "grows with it. Lines: 95% (Wilson), over families."
    ]
    if len(pairs) > len(shown):
        notes.append(f"{len(shown)} of {len(pairs)} pairs of datasets; the table has all.")
    label_figure(
        figure,
        "Which families the SAEs of another dataset hold too" + only,
        "frequency of what triggers them: in the other text / at home",
        "held (%)",
        notes=notes,
    )
    return Drawn(figure, table_of_rows([_finite(one) for one in shares], _SHARES))


def _draw(axes: Axes, shares: Sequence[HeldShare]) -> None:
    """Points with their intervals and numbers of families, for one pair of datasets."""
    for x, one in enumerate(shares):
        if not one.families:
            continue
        size = _SMALLEST + (_LARGEST - _SMALLEST) * min(1.0, one.families / _MANY) ** 0.5
        axes.plot([x, x], [100 * one.low, 100 * one.high], color=SERIES[0], linewidth=1.2)
        axes.plot(x, 100 * one.held, "o", color=SERIES[0], markersize=size)
        axes.text(x, 107, f"{one.families:,}", ha="center", va="bottom", fontsize=5.5, color=MUTED)
    axes.set_xticks(range(len(shares)), _LABELS, rotation=45, ha="right")
    axes.set_xlim(-0.6, len(shares) - 0.4)
    axes.set_ylim(-6, 122)
    axes.set_yticks(range(0, 101, 25))


def _finite(one: HeldShare) -> dict[str, object]:
    """The share as a row; the last bin has no upper end."""
    row = one._asdict()
    return row | {"ratio_to": None if np.isinf(one.ratio_to) else one.ratio_to}


def sentence(found: Mapping[str, Sequence[FamilyFrequency]]) -> str:
    """How the share changes from rare to frequent triggers, over all pairs of datasets."""
    cases = _cases(found)
    parts = []
    for name, low, high in (
        ("less than a third as frequent", 0.0, 1 / 3),
        ("as frequent or more", 1.0, np.inf),
    ):
        some = [one for one in cases if low <= one.ratio < high]
        if not some:
            return "Too few families differ in frequency to say whether frequency decides which are shared."
        held = np.mean([one.held for one in some])
        parts.append(f"{held:.0%} of the {_counted(some)} where its triggers are {name} there")
    return (
        f"A case is a family of one dataset's SAEs beside one other dataset: {_counted(cases)}. The other's "
        f"SAEs hold the family in {parts[0]}, and in {parts[1]}."
    )


class _Case(NamedTuple):
    """A family beside one other dataset."""

    family: tuple[str, int]
    """Hook and number."""
    ratio: float
    """Frequency of its triggers in the other text divided by that at home."""
    held: bool


def _cases(found: Mapping[str, Sequence[FamilyFrequency]]) -> list[_Case]:
    """All cases except families that are silent at home."""
    return [
        _Case((hook, one.family), one.other_density / one.home_density, one.held)
        for hook, some in found.items()
        for one in some
        if one.home_density > 0
    ]


def _counted(cases: Sequence[_Case]) -> str:
    return f"{len(cases):,} cases ({len({one.family for one in cases}):,} families)"


def _section(
    found: Mapping[str, Sequence[FamilyFrequency]],
    shares: Sequence[HeldShare],
    runs: Sequence[str],
    about: str,
) -> Section:
    caption = (
        "Share of each dataset's families that the SAEs of another hold, from families whose triggers are "
        "rarer in the other text (left) to those whose triggers are more frequent there (right)."
    )
    return Section(
        "Are features missing because their triggers are rare?",
        f"{sentence(found)} A family's frequency is the share of a text's tokens on which it fires.",
        tuple(sorted(runs)),
        (_over_all(_cases(found)), _by_pair(shares)),
        {"held_by_frequency.png": f"{caption} {about}".strip()},
    )


def _over_all(cases: Sequence[_Case]) -> Table:
    """Share that is held by relative frequency, over all pairs of datasets."""
    rows = []
    for label, (low, high) in zip(_LABELS, itertools.pairwise(RATIOS), strict=True):
        some = [one for one in cases if low <= one.ratio < high]
        share = 100 * float(np.mean([one.held for one in some])) if some else None
        rows.append((label, len(some), len({one.family for one in some}), share))
    return Table(
        "Held, over all pairs of datasets, by frequency in the other text / at home",
        ("relative frequency", "cases", "families", "held (%)"),
        tuple(rows),
        "A family may be in several cases, which are not independent: they have no interval.",
    )


def _by_pair(shares: Sequence[HeldShare]) -> Table:
    labels = dict(zip(RATIOS[:-1], _LABELS, strict=True))
    rows = tuple(
        (
            *(one.home, one.other, labels[one.ratio_from], one.families),
            *(None if np.isnan(part) else round(100 * part, 1) for part in (one.held, one.low, one.high)),
        )
        for one in shares
    )
    heads = ("families of", "in SAEs of", "relative frequency", "families", "held (%)", "low", "high")
    return Table("Held, by pair of datasets and relative frequency", heads, rows, folded=True)
