"""Figures and tables, from results that are given or on disk; nothing is computed anew."""

from sae_sweep.report.features import FeatureFiles, read_densities, write_features
from sae_sweep.report.files import ComparisonFiles, write_comparison
from sae_sweep.report.run_figures import RunFigures, run_figures
from sae_sweep.report.terminal import RunLine, terminal_summary

__all__ = [
    "ComparisonFiles",
    "FeatureFiles",
    "RunFigures",
    "RunLine",
    "read_densities",
    "run_figures",
    "terminal_summary",
    "write_comparison",
    "write_features",
]
