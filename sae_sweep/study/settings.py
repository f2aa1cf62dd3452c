"""Figure 1: the settings of an SAE, ordered by how much each moves the feature set."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sae_sweep.study.cells import Cell
from sae_sweep.study.shares import Share

SETTINGS = {
    "dataset": ("dataset",),
    "seed": ("seed_42_49",),
    "dictionary size": ("dictionary_large_in_small", "dictionary_small_in_large"),
    "architecture": ("architecture",),
    "sparsity": ("sparsity",),
}
"""Setting -> blocks of Table 1."""


@dataclass(frozen=True)
class Setting:
    """All cells of Table 1 whose two SAEs differ in one setting."""

    name: str
    cells: tuple[tuple[Cell, Share | None], ...]
    """With what was measured; None where a run is missing."""
    measured: float | None
    """Mean matching ratio in per cent over the cells that were measured; None if there are none."""
    published: float
    """Mean over the same cells as published; over all of them if none was measured."""
    undertrained: int
    """Measured cells with a run that still matches its own initial dictionary above the limit."""


def settings(results: Sequence[tuple[Cell, Share | None, bool]]) -> tuple[Setting, ...]:
    """The lowest mean first: what moves the features most. Those without a measured cell come last.

    Args:
        results: cells of Table 1, what was measured, and whether a run of it is undertrained.
    """
    found = [
        _setting(name, [result for result in results if result[0].block in blocks])
        for name, blocks in SETTINGS.items()
    ]
    return tuple(sorted(found, key=_order))


def _order(setting: Setting) -> tuple[bool, float]:
    if setting.measured is None:
        return True, setting.published
    return False, setting.measured


def _setting(name: str, results: Sequence[tuple[Cell, Share | None, bool]]) -> Setting:
    measured = [(cell, share) for cell, share, _ in results if share is not None]
    cells = [(cell, share) for cell, share, _ in results]
    printed = [cell.published for cell, _ in measured or cells if cell.published is not None]
    return Setting(
        name=name,
        cells=tuple(cells),
        measured=100 * fmean(share.ratio for _, share in measured) if measured else None,
        published=fmean(printed),
        undertrained=sum(marked for _, _, marked in results),
    )
