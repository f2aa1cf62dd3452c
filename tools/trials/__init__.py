"""Trials of `tools/break_it.py`: small real sweeps, what is done to them, and how it is judged."""
