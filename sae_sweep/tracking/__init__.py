"""Tracking: the local history of every run, and Weights & Biases beside it."""

from sae_sweep.tracking.sinks import ComparisonSink, RunSink, open_comparison_sink, open_sink

__all__ = ["ComparisonSink", "RunSink", "open_comparison_sink", "open_sink"]
