"""Tracking: the local history of every run, and Weights & Biases beside it."""

from sae_sweep.tracking.environment import refuse_wrong_names
from sae_sweep.tracking.sinks import (
    ComparisonSink,
    RunLabels,
    RunSink,
    open_comparison_sink,
    open_sink,
    wandb_key,
)

__all__ = [
    "ComparisonSink",
    "RunLabels",
    "RunSink",
    "open_comparison_sink",
    "open_sink",
    "refuse_wrong_names",
    "wandb_key",
]
