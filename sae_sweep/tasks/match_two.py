"""`task=match a=SAE b=SAE`: compares two SAEs, of runs or of other origin, by every measure."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

from sae_sweep.activations import pick_device
from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.measured import Measured, Subject, measure_pairs
from sae_sweep.config import CommandConfig, SaeSweepError, escaped, expanded
from sae_sweep.config.names import path_label
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.match_files import write_matches
from sae_sweep.report.measure_files import write_measures
from sae_sweep.saes import SAE, open_sae
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import SweepFolder, find_run, hold_folder
from sae_sweep.tasks.finished import read_finished

log = logging.getLogger(__name__)

_OTHERS = "matched"
"""Folder below `paths.output` of comparisons of two SAEs, unless `sweep` names one."""


@dataclass(frozen=True)
class _Side:
    """One of the two SAEs."""

    key: str
    """`a` or `b`."""
    label: str
    sae: SAE
    subject: Subject
    model: str | None
    """The language model that it reads; None if its files do not say."""
    layer: int | None


def match_two(request: Request) -> int:
    """Compare the SAEs `a` and `b`, write the results, and print them.

    Returns 0.

    Raises:
        SaeSweepError: if one of them cannot be read, or they cannot be compared.
    """
    command, device = request.command, pick_device(request.runs[0].config.device)
    a, b = (_side(key, str(getattr(command, key)), command) for key in ("a", "b"))
    _check(a, b)
    settings = replace(command.matching, measures=command.matching.measures or "all")
    measured = measure_pairs(
        [a.subject, b.subject], [(0, 1)], settings, device=device, between=raise_if_requested
    )
    for name, left_out in measured.left_out.items():
        log.warning("%s: features left out of the comparison: %s", name, left_out)
    folder = expanded(command.paths.output).absolute() / (command.sweep or _OTHERS) / f"{a.label}__{b.label}"
    with hold_folder(folder):
        files = write_measures(folder, measured)
        matches = write_matches(folder / "matches.parquet", *(one.subject.entry for one in (a, b)), device)
    show(f"{measures_text(measured)}\n\n")
    show(f"{files_text({'measures': files.pairs, 'curves': files.curves, 'each feature': matches})}\n")
    return 0
