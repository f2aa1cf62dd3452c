"""`task=match a=SAE b=SAE`: compares two SAEs, of runs or of other origin, by every measure."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_sweep.activations import pick_device
from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.correlation import correlate
from sae_sweep.analysis.dictionaries import usable_rows
from sae_sweep.analysis.measured import Subject, measure_pairs
from sae_sweep.analysis.neighbours import mutual, nearest
from sae_sweep.analysis.unmatched import balanced
from sae_sweep.config import CommandConfig, RunConfig, SaeSweepError, escaped, expanded
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.family_text import correlation_text, measures_text
from sae_sweep.report.match_files import write_matches
from sae_sweep.report.measure_files import write_measures
from sae_sweep.report.unmatched_files import write_ablations, write_correlation
from sae_sweep.saes import open_sae
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import RunFolder, SweepFolder, hold
from sae_sweep.tasks.analysed import label_of, plain_model, run_at
from sae_sweep.tasks.finished import read_finished
from sae_sweep.tasks.on_text import Reader, Reading

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
    reader: Reader


def match_two(request: Request) -> int:
    """Compare the SAEs `a` and `b` by every measure beside nulls, write the results, and print them.

    Raises:
        SaeSweepError: if one of them cannot be read, or they cannot be compared.
    """
    command, config = request.command, request.runs[0].config
    device = pick_device(config.device)
    sides = [_side(key, str(getattr(command, key)), command.matching.threshold, config) for key in ("a", "b")]
    _check(sides)
    if sides[0].subject.entry.name == sides[1].subject.entry.name:
        sides = [_renamed(side) for side in sides]
    settings = replace(command.matching, measures=command.matching.measures or "all")
    subjects = [side.subject for side in sides]
    reading = Reading(command, config.device) if settings.tokens is not None else None
    residuals = None
    if reading is not None:
        for side in sides:
            reading.check(side.reader)
    if reading is not None and "tokens" in settings.nulls:
        residuals = {side.subject.entry.name: reading.inputs(side.reader) for side in sides}
    measured = measure_pairs(
        subjects, [(0, 1)], settings, residuals=residuals, device=device, between=raise_if_requested
    )
    for name, left_out in measured.left_out.items():
        log.warning("%s: features left out of the comparison: %s", escaped(name), left_out)
    for null in sorted(set(settings.nulls) - {row.chance for row in measured.pairs}):
        log.info("the null %s is left out: it is not known of these SAEs", null)
    a, b = (subject.entry for subject in subjects)
    folder = _folder(command, a.name, b.name)
    with hold(folder):
        files = write_measures(folder.root, measured)
        matches = write_matches(folder.root / "matches.parquet", a, b, device)
    show(f"{measures_text(measured)}\n\n")
    shown = {"measures": files.pairs, "curves": files.curves, "each feature": matches}
    if reading is not None:
        shown |= _on_text(reading, sides, folder, command.matching.threshold)
    show(f"{files_text(shown)}\n")
    return 0


def _on_text(
    reading: Reading, sides: Sequence[_Side], folder: RunFolder, threshold: float
) -> dict[str, Path]:
    """Which features fire together, and the loss without those that have no match; returns the files."""
    a, b = (side.reader for side in sides)
    codes = reading.codes(a, b)
    matched = _matched(sides, threshold)
    together = correlate(*codes, matched, between=raise_if_requested)
    show(f"{correlation_text(together)}\n\n")
    losses = {
        side.reader.name: reading.ablations(side.reader, sets)
        for side, sets in zip(sides, _unmatched(matched, codes), strict=True)
    }
    with hold(folder):
        return {
            "firing together": write_correlation(folder.root / "correlation.parquet", together),
            "loss without": write_ablations(folder.root / "ablations.csv", losses),
        }


def _matched(sides: Sequence[_Side], threshold: float) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Features of a and of b that are each other's nearest by decoder, above the threshold."""
    rows = [usable_rows([side.subject.entry.decoder]) for side in sides]
    pairs = mutual(nearest(rows[0].unit, rows[1].unit))
    above = pairs.cosines > threshold
    return rows[0].kept.ids[pairs.a[above]], rows[1].kept.ids[pairs.b[above]]


def _unmatched(
    matched: Sequence[Int[Tensor, " n"]], codes: Sequence[Codes]
) -> list[dict[str, Bool[Tensor, " d_sae"]]]:
    """Features of either SAE that have no mutual match in the other, and sets to compare them with."""
    found = []
    for ids, code in zip(matched, codes, strict=True):
        densities = torch.bincount(code.features, minlength=code.d_sae) / max(1, len(code.positions))
        orphan = torch.ones(code.d_sae, dtype=torch.bool).index_fill(0, ids, False)
        found.append(balanced(orphan, densities > 0, densities))
    return found


def _folder(command: CommandConfig, a: str, b: str) -> RunFolder:
    sweep = SweepFolder(expanded(command.paths.output).absolute() / (command.sweep or _OTHERS))
    return sweep.run(label_of(f"{a}__{b}"))


def _side(key: str, named: str, threshold: float, config: RunConfig) -> _Side:
    run = run_at(named, key)
    if run is not None:
        finished = read_finished(run.planned(), threshold)
        model, layer = finished.config.model.label, finished.config.layer
        return _Side(key, finished.subject, model, layer, finished.reader)
    sae, origin = open_sae(named)
    entry = ComparisonEntry(label_of(named), {}, sae.W_dec.detach(), init_match=math.nan)
    reads = config if origin.layer is None else replace(config, layer=origin.layer)
    reader = Reader(entry.name, reads, lambda: sae)
    return _Side(key, Subject(entry, lambda: sae), origin.model, origin.layer, reader)


def _renamed(side: _Side) -> _Side:
    """The side with `a_` or `b_` before its name, where both have one name."""
    name = f"{side.key}_{side.subject.entry.name}"
    subject = replace(side.subject, entry=replace(side.subject.entry, name=name))
    return replace(side, subject=subject, reader=replace(side.reader, name=name))


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
