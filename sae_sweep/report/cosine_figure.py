"""Top-1 cosines of pairs that differ in one key: is a feature found again, nearly so, or not at all?"""

import numpy as np
from matplotlib.figure import Figure

from sae_sweep.analysis import COSINE_EDGES, SEVERAL, Comparison, KeySummary
from sae_sweep.report.style import INK, MUTED, SERIES, new_figure, tidy


def cosine_figure(comparison: Comparison) -> Figure:
    """One outline a group of pairs, in per cent of its features a bin of 0.02."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    colours = dict(zip((s.key for s in comparison.summaries if s.key != SEVERAL), SERIES * 9, strict=False))
    for summary in comparison.summaries:
        counts = np.array(summary.histogram)
        axes.stairs(
            100 * counts / max(1, counts.sum()), COSINE_EDGES, linewidth=1.5,
            color=colours.get(summary.key, "#9a9a9a"), label=_label(summary),
        )  # fmt: skip
    axes.axvline(comparison.threshold, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f" matched: > {comparison.threshold:g}", (comparison.threshold, 1), 
        xycoords=("data", "axes fraction"), fontsize=8, color=MUTED, va="top",
    )  # fmt: skip
    axes.set_xlim(_left_end(comparison), 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("best decoder cosine of a feature in the other SAE", fontsize=9, color=INK)
    axes.set_ylabel("features (%) per 0.02", fontsize=9, color=INK)
    axes.set_title("Where the features of one SAE have their nearest in another", fontsize=11, color=INK)
    if comparison.summaries:
        figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    tidy(axes)
    return figure


def _label(summary: KeySummary) -> str:
    what = "more than one key differs" if summary.key == SEVERAL else f"only {summary.key} differs"
    pairs = "1 pair" if summary.pairs == 1 else f"{summary.pairs} pairs"
    return f"{what} ({pairs}): {summary.ratio:.1%} matched [{summary.low:.1%}, {summary.high:.1%}]"


def _left_end(comparison: Comparison) -> float:
    """A little left of the smallest cosine there is, and of the threshold: its label needs a place."""
    filled = np.flatnonzero(np.array(comparison.histogram))
    smallest = min(COSINE_EDGES[filled[0]], comparison.threshold) if len(filled) else comparison.threshold
    return max(-1.0, smallest - 0.06)
