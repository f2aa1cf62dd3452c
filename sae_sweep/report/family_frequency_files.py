"""What families two datasets share, by how often their triggers occur in each: files and a section."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow

from sae_sweep.analysis.family_frequency import RATIOS, FamilyFrequency, HeldShare, Member, held_shares
from sae_sweep.config import escaped
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.page.sections import Section, Table, write_section
from sae_sweep.report.panels import Drawn, label_figure, panel_grid, write_drawn
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.report.style import SERIES

_FAMILIES = (
    *(("hook", TEXT), ("family", WHOLE), ("home", TEXT), ("other", TEXT), ("members", WHOLE)),
    *(("home_density", NUMBER), ("other_density", NUMBER), ("held", pyarrow.bool_())),
)
_SHARES = (
    *(("home", TEXT), ("other", TEXT), ("ratio_from", NUMBER), ("ratio_to", NUMBER)),
    *(("families", WHOLE), ("held", NUMBER), ("low", NUMBER), ("high", NUMBER)),
)
_LABELS = ("< 1/30", "1/30 to 1/10", "1/10 to 1/3", "1/3 to 1", "1 to 3", "> 3")


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
    folder: Path, found: dict[str, list[FamilyFrequency]], runs: Sequence[str]
) -> Path:
    """Write families with their frequencies by hook, the shares that are held, and the section.

    Returns the figure.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    rows = [{"hook": hook, **one._asdict()} for hook, some in found.items() for one in some]
    shares = held_shares([one for some in found.values() for one in some])
    write_parquet(folder / "families.parquet", table_of_rows(rows, _FAMILIES))
    figure = write_drawn(folder, "held_by_frequency", frequency_figure(shares)).png
    write_section(folder, _section(shares, runs))
    return figure


def frequency_figure(shares: Sequence[HeldShare]) -> Drawn:
    """Share of each dataset's families that the other's SAEs hold, by relative frequency."""
    pairs = list(dict.fromkeys((one.home, one.other) for one in shares))
    figure, panels = panel_grid([f"{home} in {other}" for home, other in pairs], share_y=True, row=1.9)
    for axes, pair in zip(panels, pairs, strict=True):
        some = [one for one in shares if (one.home, one.other) == pair]
        for x, one in enumerate(some):
            axes.plot([x, x], [100 * one.low, 100 * one.high], color=SERIES[0], linewidth=1.2)
            axes.plot(x, 100 * one.held, "o", color=SERIES[0], markersize=4)
        axes.set_xticks(range(len(some)), _LABELS, rotation=45, ha="right")
        axes.set_ylim(0, 100)
    names = ", ".join(f"{escaped(home)} in {escaped(other)}" for home, other in pairs[:1])
    label_figure(
        figure,
        "Which families the SAEs of another dataset hold too" + (f"\n{names}" if len(pairs) == 1 else ""),
        "frequency of what triggers them: in the other text / at home",
        "held (%)",
        notes=[
            "Families in SAEs of two or more seeds of the first dataset; lines: 95% (Wilson) over families."
        ],
    )
    return Drawn(figure, table_of_rows([_finite(one) for one in shares], _SHARES))


def _finite(one: HeldShare) -> dict[str, object]:
    """The share as a row; the last bin has no upper end."""
    row = one._asdict()
    return row | {"ratio_to": None if np.isinf(one.ratio_to) else one.ratio_to}


def sentence(shares: Sequence[HeldShare]) -> str:
    """How the share changes from rare to frequent triggers, over all pairs of datasets."""
    parts = []
    for name, wanted in (
        ("less than a third as frequent", (0.0, 0.3)),
        ("as frequent or more", (1.0, np.inf)),
    ):
        some = [one for one in shares if wanted[0] <= one.ratio_from < wanted[1] and one.families]
        count = sum(one.families for one in some)
        if not count:
            return "Too few families differ in frequency to say whether frequency decides which are shared."
        held = sum(one.held * one.families for one in some)
        parts.append(f"{held / count:.0%} of the {count:,} families whose triggers are {name} there")
    return f"Over all pairs of datasets, the SAEs of the other one hold {parts[0]}, and {parts[1]}."


def _section(shares: Sequence[HeldShare], runs: Sequence[str]) -> Section:
    labels = dict(zip(RATIOS[:-1], _LABELS, strict=True))
    rows = tuple(
        (
            *(one.home, one.other, labels[one.ratio_from], one.families),
            *(None if np.isnan(part) else round(100 * part, 1) for part in (one.held, one.low, one.high)),
        )
        for one in shares
    )
    heads = ("families of", "in SAEs of", "relative frequency", "families", "held (%)", "low", "high")
    return Section(
        "Are features missing because their triggers are rare?",
        f"{sentence(shares)} A family's frequency is the share of a text's tokens on which it fires.",
        tuple(sorted(runs)),
        (Table("Families held by the SAEs of the other dataset, by relative frequency", heads, rows),),
        {"held_by_frequency.png": "From rarer in the other text (left) to more frequent there (right)."},
    )
