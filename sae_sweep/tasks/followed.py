"""What the runs of a sweep share: measures of pairs beside their nulls, and families of features."""

import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_sweep.activations import pick_device
from sae_sweep.analysis.dictionaries import find_usable
from sae_sweep.analysis.family_results import FamilyResults, family_results
from sae_sweep.analysis.measured import Measured, measure_pairs
from sae_sweep.analysis.pairs import varied_keys
from sae_sweep.config import CommandConfig, SaeSweepError, escaped
from sae_sweep.progress import Progress
from sae_sweep.report.analysis_files import analysis_owner
from sae_sweep.report.family_examples import Analysis, Examples, write_examples
from sae_sweep.report.family_figures import counts_figure, kinds_figure, presence_figure
from sae_sweep.report.family_files import FamilyFiles, write_families
from sae_sweep.report.measure_figures import curves_figure, measures_figure, rates_figure, undertrained_keys
from sae_sweep.report.measure_files import MeasureFiles, write_measures
from sae_sweep.report.panels import Drawn, write_drawn
from sae_sweep.report.unmatched_files import write_ablations, write_unmatched
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import SweepFolder, hold_sweep
from sae_sweep.tasks.finished import Finished
from sae_sweep.tasks.on_text import Reading
from sae_sweep.tasks.orphans import compare_orphans
from sae_sweep.tasks.top_cosines import draw_top_cosines
from sae_sweep.tasks.truth import check_against_truth

log = logging.getLogger(__name__)

_FIGURES = ("measures_by_key", "threshold_curves", "firing_rate", "top_cosines", "truth")
"""Names of figures and tables in `analysis/matching/` that not every comparison has."""
_KINDS = ("png", "svg", "parquet", "csv")


@dataclass(frozen=True)
class Hook:
    """The families of the runs that read one hook."""

    label: str
    """`L8`, or with the model's name where there are several; empty if it is the only hook."""
    results: FamilyResults
    files: FamilyFiles
    examples: Examples | None
    """None if no run was analysed."""
    figures: Mapping[str, Path]
    """By name."""


@dataclass(frozen=True)
class Followed:
    """Measures of the pairs that differ in one key, and families by hook."""

    measured: Measured
    files: MeasureFiles
    hooks: tuple[Hook, ...] = field(default=())
    """The one with the most runs first."""
    figures: Mapping[str, Path] = field(default_factory=dict)
    """Figures of the measures, by name."""
    truth: str = ""
    """What was found of the true features of synthetic activations, for the terminal."""


def follow(folder: SweepFolder, found: Sequence[Finished], command: CommandConfig, device: str) -> Followed:
    """Measure pairs of finished runs and follow their features through all of them; write both.

    With `matching.tokens`, text is read for the null of random tokens and for the loss without features.

    Raises:
        SaeSweepError: if a file cannot be written, or an SAE has no features that can be compared.
        Interrupted: if a signal asked to stop.
    """
    found = [one for one in found if _has_features(one)]
    on, subjects = pick_device(device), [one.subject for one in found]
    reading = Reading(command, device) if command.matching.tokens is not None else None
    residuals = None
    if reading is not None and "tokens" in command.matching.nulls:
        residuals = {one.entry.name: reading.inputs(one.reader) for one in found}
    alike = [
        (i, j)
        for i, j in itertools.combinations(range(len(found)), 2)
        if len(varied_keys(found[i].entry.keys, found[j].entry.keys)) == 1
        and _comparable(found[i], found[j], command.matching.side)
    ]
    with steps("measures", "pairs") as progress:
        measured = measure_pairs(
            subjects,
            alike,
            command.matching,
            residuals=residuals,
            device=on,
            between=raise_if_requested,
            progress=progress,
        )
    for name, left_out in measured.left_out.items():
        log.warning("%s: features left out of comparisons: %s", name, left_out)
    with hold_sweep(folder):
        for stale in (folder.matching / f"{name}.{kind}" for name in _FIGURES for kind in _KINDS):
            stale.unlink(missing_ok=True)
        files = write_measures(folder.matching, measured)
        figures = _written(folder.matching, measure_figures(measured, command.matching.threshold))
        nearest_rows = draw_top_cosines(found, command.matching.undertrained, on)
        if nearest_rows is not None:
            figures |= _written(folder.matching, [("top_cosines", nearest_rows)])
        shutil.rmtree(folder.families, ignore_errors=True)  # of other runs, or another threshold
    hooks = tuple(_families(folder, found, command, _On(on, reading, residuals)))
    first = hooks[0].results if len(hooks) == 1 else None
    truth = check_against_truth(folder, found, first, command.matching)
    return Followed(measured, files, hooks, figures, truth)


def _has_features(one: Finished) -> bool:
    """Whether an SAE has a feature that can be followed; says so if not."""
    kept = find_usable([one.entry.decoder], one.entry.densities)
    if not len(kept.ids):
        log.warning("%s: none of its features can be followed: %s", one.entry.name, kept.left_out)
    return len(kept.ids) > 0


def _comparable(a: Finished, b: Finished, side: str) -> bool:
    """Whether rows have as many entries: of features d_in, of neurons d_sae."""
    ours, theirs = a.entry.decoder.shape, b.entry.decoder.shape
    return ours[1] == theirs[1] and (side == "features" or ours[0] == theirs[0])


class _On(NamedTuple):
    """The device of a comparison, and what it reads of text."""

    device: torch.device
    reading: Reading | None
    residuals: Mapping[str, Tensor] | None
    """SAE inputs at random tokens, by run."""


def _families(
    folder: SweepFolder, found: Sequence[Finished], command: CommandConfig, on: "_On"
) -> Iterator[Hook]:
    """Families of each hook that has two trained runs, the hook with the most runs first."""
    for label, some in _by_hook(found).items():
        entries = [one.entry for one in some]
        trained = [one for one in entries if not one.init_match > command.matching.undertrained]
        where = f" of {escaped(label)}" if label else ""
        if len(trained) < 2:
            log.info("no families%s: %d of its %d SAEs trained enough", where, len(trained), len(entries))
            continue
        with steps(f"families{where}", "pairs") as progress:
            results = family_results(
                entries,
                command.matching,
                residuals=on.residuals,
                device=on.device,
                between=raise_if_requested,
                progress=progress,
            )
        properties, losses = compare_orphans(some, results.families, on.reading)
        with hold_sweep(folder):
            files = write_families(folder.families / label, results, entries)
            figures = _written(folder.families / label, _family_figures(results))
            write_unmatched(folder.families / label / "unmatched.csv", properties)
            if losses:
                write_ablations(folder.families / label / "ablations.csv", losses)
            examples = write_examples(folder.families / label, results, _analyses(some))
        yield Hook(label, results, files, examples, figures)


def _written(folder: Path, figures: Iterable[tuple[str, Drawn]]) -> dict[str, Path]:
    """Write figures; returns their PNGs by name."""
    return {name: write_drawn(folder, name, drawn).png for name, drawn in figures}


def _family_figures(results: FamilyResults) -> Iterator[tuple[str, Drawn]]:
    if len(results.families.sizes):
        yield "by_key", kinds_figure(results.families, results.rows)
        yield "presence", presence_figure(results.families)
    yield "by_number_of_saes", counts_figure(results.families)


def measure_figures(measured: Measured, threshold: float) -> Iterator[tuple[str, Drawn]]:
    """Figures of what was measured, by name; of all features, or of live ones where those are known."""
    if not measured.keys:
        return
    kind = "live" if any(row.features == "live" for row in measured.keys) else "all"
    yield "measures_by_key", measures_figure(measured.keys, kind)
    undertrained = undertrained_keys(measured.keys)
    yield "threshold_curves", curves_figure(measured.curves, threshold, kind, undertrained)
    if measured.rates:
        yield "firing_rate", rates_figure(measured.rates, undertrained)


def _analyses(found: Sequence[Finished]) -> dict[str, Analysis]:
    """Analyses of features by run; one that is damaged or of another run is left out."""
    analyses = {}
    for one in found:
        features = one.run.folder.features
        try:
            if analysis_owner(features) == one.run.run_id:
                analyses[one.run.name] = Analysis(features, one.run.run_id)
        except SaeSweepError as error:
            log.warning("%s: its contexts are left out: %s", one.run.name, error)
    return analyses


def _by_hook(found: Sequence[Finished]) -> Mapping[str, list[Finished]]:
    """The runs of each hook, by its label."""
    groups: dict[tuple[str, int], list[Finished]] = {}
    for one in found:
        groups.setdefault(one.hook, []).append(one)
    if len(groups) == 1:
        return {"": list(found)}
    several = len({model for model, _ in groups}) > 1
    labels = {
        hook: f"{some[0].config.model.label}_L{hook[1]}" if several else f"L{hook[1]}"
        for hook, some in groups.items()
    }
    repeated = {label for label, count in Counter(labels.values()).items() if count > 1}
    named = {
        f"{label}-{hook[0][:6]}" if label in repeated else label: groups[hook]
        for hook, label in labels.items()
    }
    return dict(sorted(named.items(), key=lambda item: -len(item[1])))


@contextmanager
def steps(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows progress when it is called with steps done and in total, and obeys a stop."""
    shown: list[Progress] = []

    def advance(done: int, total: int) -> None:
        raise_if_requested()
        if not shown:
            shown.append(Progress(label, total, unit=unit))
        shown[0].show(done, {})

    try:
        yield advance
    finally:
        for one in shown:
            one.close()
