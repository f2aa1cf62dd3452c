"""Three figures per run: how often its features fire, how strongly, and one against the other."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from sae_sweep.analysis import Evaluation
from sae_sweep.config import EvaluationConfig
from sae_sweep.report.style import INK, MUTED, SERIES, log_scale, new_figure, power_of_ten, save, tidy


class RunFigures(NamedTuple):
    """Files of a run's figures."""

    density: Path
    activations: Path
    frequency: Path


def run_figures(
    folder: Path, evaluation: Evaluation, *, name: str = "", config: EvaluationConfig | None = None
) -> RunFigures:
    """Write the figures into `folder`, as `density.png`, `activations.png` and `frequency.png`.

    Args:
        folder: the run's `features/`.
        evaluation: the histograms to draw.
        name: name of the run, for the titles.
        config: limits of dense and ultra-rare features, drawn as lines.
    """
    config = config or EvaluationConfig()
    return RunFigures(
        density=save(density_figure(evaluation, config, name), folder / "density.png"),
        activations=save(activation_figure(evaluation, name), folder / "activations.png"),
        frequency=save(frequency_figure(evaluation, name), folder / "frequency.png"),
    )


def density_figure(evaluation: Evaluation, config: EvaluationConfig, name: str) -> Figure:
    """Histogram of densities; the number of dead features, often most of them, is written above it."""
    counts = np.array(evaluation.density_histogram.counts)
    edges = np.array(evaluation.density_histogram.edges)
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    axes.stairs(counts[1:], edges[1:], fill=True, color=SERIES[0])
    axes.annotate(
        f"{counts[0]:,} of {counts.sum():,} features\nnever fire (not drawn)", (0.02, 0.97),
        xycoords="axes fraction", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    for limit, what in ((config.ultra_rare, "ultra-rare"), (config.dense, "dense")):
        if limit > 0 and math.log10(limit) >= edges[1]:
            axes.axvline(math.log10(limit), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                f" {what} ", (math.log10(limit), 0.82), xycoords=("data", "axes fraction"),
                va="top", fontsize=8, color=MUTED,
            )  # fmt: skip
    axes.set_ylim(0, 1.3 * max(1, counts[1:].max()))
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value) if value <= 0 else ""))
    axes.set_xlabel(
        f"share of held-out tokens on which the feature fires (floor: 1 of {evaluation.tokens:,})",
        fontsize=9, color=INK,
    )  # fmt: skip
    axes.set_ylabel("features", fontsize=9, color=INK)
    axes.set_title(_title("How often features fire", name), fontsize=10, color=INK)
    tidy(axes)
    return figure


def activation_figure(evaluation: Evaluation, name: str) -> Figure:
    """Histogram of all non-zero activations, in log-spaced bins."""
    counts, edges = np.array(evaluation.activation_histogram.counts), evaluation.activation_histogram.edges
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    shares = 100 * counts / max(1, counts.sum())
    axes.stairs(shares, edges, fill=True, color=SERIES[2])
    log_scale(axes.xaxis)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("activation, where not zero (SAE-input scale)", fontsize=9, color=INK)
    axes.set_ylabel("activations (%) per bin", fontsize=9, color=INK)
    axes.set_title(_title("How strongly features fire", name), fontsize=10, color=INK)
    l0 = evaluation.metrics["l0"]
    axes.annotate(
        f"{counts.sum():,} activations\n{l0:.1f} per token", (0.02, 0.97), xycoords="axes fraction",
        va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    tidy(axes)
    return figure


def frequency_figure(evaluation: Evaluation, name: str) -> Figure:
    """Density against mean activation, a dot per feature that fires."""
    density, mean = evaluation.densities.cpu().numpy(), evaluation.mean_activations.cpu().numpy()
    live = density > 0
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    axes.scatter(mean[live], density[live], s=4, alpha=0.5, linewidths=0, color=SERIES[0], rasterized=True)
    if live.any():
        log_scale(axes.xaxis)
        log_scale(axes.yaxis)
    axes.set_xlabel("mean activation, where not zero (SAE-input scale)", fontsize=9, color=INK)
    axes.set_ylabel("share of tokens", fontsize=9, color=INK)
    axes.set_title(_title("How often and how strongly features fire", name), fontsize=10, color=INK)
    axes.annotate(
        f"{live.sum():,} of {len(live):,} features\n{evaluation.tokens:,} held-out tokens", (0.02, 0.97),
        xycoords="axes fraction", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    tidy(axes)
    return figure


def _title(what: str, name: str) -> str:
    return f"{what}\n{name}" if name else what
