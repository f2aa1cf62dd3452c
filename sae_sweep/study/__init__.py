"""The one paper that is reproduced: published numbers, cells, tables, figures and `task=report`.

Only the task table imports it, for `sae_sweep.study.report:report`.
"""
