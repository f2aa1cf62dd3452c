"""Figures, tables and terminal text, from results in memory or on disk; no result is computed here.

Importing this package is cheap; torch and matplotlib are loaded with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_sweep.report.features import (
        FeatureFiles,
        read_densities,
        read_mean_activations,
        write_features,
    )
    from sae_sweep.report.files import ComparisonFiles, write_comparison
    from sae_sweep.report.histogram_figures import RunFigures, run_figures
    from sae_sweep.report.plan_text import describe_plan
    from sae_sweep.report.runs_table import write_runs
    from sae_sweep.report.shortened import short_names
    from sae_sweep.report.status_text import describe_status
    from sae_sweep.report.terminal import RunLine, files_text, position_text, terminal_summary

_HOMES = {
    "ComparisonFiles": "files",
    "FeatureFiles": "features",
    "RunFigures": "histogram_figures",
    "RunLine": "terminal",
    "describe_plan": "plan_text",
    "describe_status": "status_text",
    "files_text": "terminal",
    "position_text": "terminal",
    "read_densities": "features",
    "read_mean_activations": "features",
    "run_figures": "histogram_figures",
    "short_names": "shortened",
    "terminal_summary": "terminal",
    "write_comparison": "files",
    "write_features": "features",
    "write_runs": "runs_table",
}

__all__ = [
    "ComparisonFiles",
    "FeatureFiles",
    "RunFigures",
    "RunLine",
    "describe_plan",
    "describe_status",
    "files_text",
    "position_text",
    "read_densities",
    "read_mean_activations",
    "run_figures",
    "short_names",
    "terminal_summary",
    "write_comparison",
    "write_features",
    "write_runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
