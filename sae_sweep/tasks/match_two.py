"""`task=match a=SAE b=SAE`: compares two SAEs, of runs or of other origin, by every measure."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_sweep.activations import pick_device
from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.measured import Subject, measure_pairs
from sae_sweep.config import CommandConfig, SaeSweepError, escaped, expanded
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.family_text import measures_text
from sae_sweep.report.match_files import write_matches
from sae_sweep.report.measure_files import write_measures
from sae_sweep.saes import open_sae
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import RunFolder, SweepFolder, hold
from sae_sweep.tasks.analysed import label_of, plain_model, run_at
from sae_sweep.tasks.finished import read_finished

log = logging.getLogger(__name__)

_OTHERS = "matched"
"""Folder below `paths.output` of comparisons of two SAEs, unless `sweep` names one."""


@dataclass(frozen=True)
class _Side:
    """One of the two SAEs."""

    key: str
    """`a` or `b`."""
    subject: Subject
    model: str | None
    """The language model that it reads; None if its files do not say."""
    layer: int | None


def match_two(request: Request) -> int:
    """Compare the SAEs `a` and `b` by every measure beside nulls, write the results, and print them.

    Raises:
        SaeSweepError: if one of them cannot be read, or they cannot be compared.
    """
    command, device = request.command, pick_device(request.runs[0].config.device)
    sides = [_side(key, str(getattr(command, key)), command.matching.threshold) for key in ("a", "b")]
    _check(sides)
    settings = replace(command.matching, measures=command.matching.measures or "all")
    subjects = [side.subject for side in sides]
    measured = measure_pairs(subjects, [(0, 1)], settings, device=device, between=raise_if_requested)
    for name, left_out in measured.left_out.items():
        log.warning("%s: features left out of the comparison: %s", escaped(name), left_out)
    a, b = (subject.entry for subject in subjects)
    folder = _folder(command, a.name, b.name)
    with hold(folder):
        files = write_measures(folder.root, measured)
        matches = write_matches(folder.root / "matches.parquet", a, b, device)
    show(f"{measures_text(measured)}\n\n")
    show(f"{files_text({'measures': files.pairs, 'curves': files.curves, 'each feature': matches})}\n")
    return 0


def _folder(command: CommandConfig, a: str, b: str) -> RunFolder:
    sweep = SweepFolder(expanded(command.paths.output).absolute() / (command.sweep or _OTHERS))
    return sweep.run(label_of(f"{a}__{b}"))


def _side(key: str, named: str, threshold: float) -> _Side:
    run = run_at(named, key)
    if run is not None:
        finished = read_finished(run.planned(), threshold)
        return _Side(key, finished.subject, finished.config.model.label, finished.config.layer)
    sae, origin = open_sae(named)
    entry = ComparisonEntry(label_of(named), {}, sae.W_dec.detach(), init_match=math.nan)
    return _Side(key, Subject(entry, lambda: sae), origin.model, origin.layer)


def _check(sides: Sequence[_Side]) -> None:
    """Refuse SAEs of different widths; say if they read different models or layers."""
    widths = [side.subject.entry.decoder.shape[1] for side in sides]
    if widths[0] != widths[1]:
        raise SaeSweepError(
            f"a reads residuals of width {widths[0]:,} and b of {widths[1]:,}: only SAEs of one residual "
            "width can be compared"
        )
    models = [side.model for side in sides]
    if None not in models and len({plain_model(str(model)) for model in models}) > 1:
        names = (escaped(str(model)) for model in models)
        log.warning("a reads %s and b %s: their features have no common space", *names)
    layers = [side.layer for side in sides]
    if None not in layers and layers[0] != layers[1]:
        log.warning("a reads layer %s and b layer %s", *layers)
