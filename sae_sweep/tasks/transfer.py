"""`task=transfer`: every SAE of a sweep evaluated on every dataset of the sweep.

Each evaluation is kept, so that a stopped command goes on where it was, and a sweep that grew needs only the
new ones.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from sae_sweep.activations import pick_device, weights_fingerprint
from sae_sweep.analysis.family_frequency import Member, family_frequencies
from sae_sweep.config import CommandConfig, DatasetConfig, SaeSweepError, SyntheticDataset, digest
from sae_sweep.config.swept import swept_keys
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.finish import Evaluator
from sae_sweep.launch.group import Models
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.family_frequency_files import read_members, write_family_frequencies
from sae_sweep.report.formatting import described
from sae_sweep.report.kept_evaluations import KeptEvaluation, read_kept, write_kept
from sae_sweep.report.transfer_files import Transferred, lost_away, transfer_text, write_transfer
from sae_sweep.saes import sae_fingerprint
from sae_sweep.signals import deferred
from sae_sweep.store import (
    DiskError,
    PlannedRun,
    SweepFolder,
    cache_folder,
    find_sweep,
    hold_sweep,
    read_metrics,
)
from sae_sweep.tasks.analysed import Analysed, finished_of, left_out_lines
from sae_sweep.tasks.finished import labelled
from sae_sweep.tasks.followed import steps
from sae_sweep.tasks.report import write_report
from sae_sweep.tasks.tracked import track_section
from sae_sweep.text import fingerprint, open_text

log = logging.getLogger(__name__)

_VERSION = 1
"""Increase it whenever an evaluation gives other numbers: those that are kept are made again."""


class _Text(NamedTuple):
    """A dataset of the sweep."""

    label: str
    dataset: DatasetConfig
    run: PlannedRun
    """A run that was trained on it: its id says what the text was."""


class _Subject(NamedTuple):
    """An SAE of the sweep, with what tells it from the others."""

    one: Analysed
    run: PlannedRun
    keys: Mapping[str, object]
    """Its values of the sweep's keys, except dataset and seed."""
    trained_on: str
    undertrained: bool
    fingerprint: str
    """Fingerprint of the SAE: its weights, and how it computes."""

    def decided_by(self, text: _Text, content: Sequence[str]) -> str:
        """A digest of all that decides the numbers of its evaluation on a text, except the device's rounding.

        Args:
            text: the text.
            content: fingerprints of the model and of the text, as they are now.
        """
        config = self.run.config
        how = [config.layer, asdict(config.packing), asdict(config.evaluation), repr(text.dataset)]
        return digest([_VERSION, self.fingerprint, list(content), how])


class _Reading(NamedTuple):
    """What is known of the SAEs of a model and packing on a text, by their names."""

    decided_by: Mapping[str, str]
    """Digests of what decides the numbers."""
    known: Mapping[str, KeptEvaluation]
    evaluator: Evaluator | None
    """None if all evaluations are known."""


def transfer(request: Request) -> int:
    """Run `task=transfer`: write the transfer matrix of a sweep, and its section of the page.

    Returns the number of SAEs, datasets, and SAEs on a dataset that are left out; a line says why.

    Raises:
        SaeSweepError: if there is no such sweep, or its finished SAEs have fewer than two datasets.
    """
    command, device = request.command, request.runs[0].config.device
    pick_device(device)  # refuses one that is not there, even where nothing is left to evaluate
    folder = find_sweep(command)
    selection, families = finished_of(folder), read_members(folder.families)
    left_out = dict(selection.left_out)
    subjects, texts = _subjects(selection.saes, command, left_out)
    if len(texts) < 2:
        only = texts[0].label if texts else "none"
        raise SaeSweepError(
            f"{folder.root}: its finished SAEs have one dataset ({only}), and a transfer matrix needs two: "
            "train on another, such as dataset=stdlib_docs,stdlib_code"
        )
    work = _Work(command, device, folder, left_out)
    with steps("transfer", "evaluations") as progress:
        found = list(work.evaluate_all(subjects, texts, progress))
    lines = left_out_lines(left_out)
    for line in lines:
        log.error("%s", line)
    if found:
        read = {one.run for one in found}
        about = described([one.run.config for one in subjects if one.run.name in read])
        with hold_sweep(folder), deferred():
            told = [line.replace(f"{folder.root}/", "") for line in lines]
            files = write_transfer(folder.transfer, found, about, told)
            seeds = {subject.one.name: subject.run.config.seed for subject in subjects}
            shared = _family_frequencies(folder, found, families, seeds, about)
        _track(folder, command, found, bool(shared))
        width = shutil.get_terminal_size(fallback=(100, 24)).columns
        opened = {"transfer": files.figure, "its numbers": files.table} | shared
        show(f"{transfer_text(found, width)}\n\n{files_text(write_report(folder) | opened)}\n")
    return len(left_out)


def _track(folder: SweepFolder, command: CommandConfig, found: Sequence[Transferred], shared: bool) -> None:
    """Send the matrix, and what families share if that is known, to W&B."""
    lost: dict[str, list[float]] = {}
    for (_, read), change in lost_away(found).items():
        lost.setdefault(f"lost on/{read}", []).append(change)
    track_section(folder, command, folder.transfer, {read: fmean(some) for read, some in lost.items()})
    if shared:
        track_section(folder, command, folder.family_frequency, {})


def _family_frequencies(
    folder: SweepFolder,
    found: Sequence[Transferred],
    families: Mapping[str, Sequence[Member]],
    seeds: Mapping[str, int],
    about: str,
) -> dict[str, Path]:
    """Write which families datasets share against how often their triggers occur; returns the figure."""
    trained_on = {one.run: one.trained_on for one in found if not one.undertrained}
    densities = {(one.run, one.read): one.densities for one in found if not one.undertrained}
    by_hook = {
        hook: family_frequencies(members, trained_on, seeds, densities) for hook, members in families.items()
    }
    if not any(by_hook.values()):
        shutil.rmtree(folder.family_frequency, ignore_errors=True)  # of other families
        log.info("no family is in trained SAEs of two seeds of a dataset: frequencies are not compared")
        return {}
    figure = write_family_frequencies(folder.family_frequency, by_hook, list(trained_on), about)
    return {"families": figure}


def _subjects(
    saes: Sequence[Analysed], command: CommandConfig, left_out: dict[str, SaeSweepError]
) -> tuple[list[_Subject], list[_Text]]:
    """The SAEs with their keys, and the datasets that they were trained on."""
    configs = labelled([one.config for one in saes], [one.content for one in saes])
    subjects: list[_Subject] = []
    texts: dict[str, _Text] = {}
    for one, config, keys in zip(saes, configs, swept_keys(configs), strict=True):
        label = config.dataset.name
        rest = {key: value for key, value in keys.items() if key not in ("dataset", "seed")}
        if one.run is None:
            continue
        texts.setdefault(label, _Text(label, one.config.dataset, one.run))
        try:
            weak = read_metrics(one.folder, one.owner).init_match > command.matching.undertrained
            subjects.append(_Subject(one, one.run, rest, label, weak, sae_fingerprint(one.load())))
        except SaeSweepError as error:
            left_out[one.name] = error
    return subjects, list(texts.values())


@dataclass
class _Work:
    """Evaluates SAEs on texts; those that share model, text and packing share the LM's losses."""

    command: CommandConfig
    device: str
    """As in a run's config."""
    folder: SweepFolder
    left_out: dict[str, SaeSweepError]
    """Why an SAE or a text is left out, by name; evaluating adds to it."""
    _models: Models = field(default_factory=Models)

    def evaluate_all(
        self, subjects: Sequence[_Subject], texts: Sequence[_Text], progress: Callable[[int, int], None]
    ) -> Iterator[Transferred]:
        """Evaluate every SAE on every dataset, except where that is kept."""
        done, groups = 0, _by_model(subjects)
        for group in groups:
            for text in texts:
                try:
                    reading = self._read(group, text)
                except SaeSweepError as error:
                    of = f" for SAEs of {group[0].run.config.model.label}" if len(groups) > 1 else ""
                    self.left_out[f"{text.label}{of}"] = error
                    done += len(group)
                    continue
                for subject in group:
                    try:
                        found = reading.known.get(subject.one.name) or self._evaluate(subject, text, reading)
                        yield _transferred(subject, text, found)
                    except DiskError:
                        raise
                    except SaeSweepError as error:
                        self.left_out[f"{subject.one.name} on {text.label}"] = error
                    done += 1
                    progress(done, len(subjects) * len(texts))

    def _read(self, group: Sequence[_Subject], text: _Text) -> _Reading:
        """What is kept of a text; where something is missing, open it, and the model.

        Raises:
            SaeSweepError: if either is not what the SAEs were trained on, or cannot be read.
        """
        cache, first = cache_folder(self.command.paths.cache), group[0].run
        refuse_other_content(first, cache, ("model",))
        refuse_other_content(text.run, cache, ("corpus",))
        content = weights_fingerprint(first.config.model), fingerprint(text.dataset, cache)
        decided_by = {one.one.name: one.decided_by(text, content) for one in group}
        read = {name: read_kept(self._file(name, text), own) for name, own in decided_by.items()}
        known = {name: found for name, found in read.items() if found is not None}
        if len(known) == len(group):
            return _Reading(decided_by, known, None)
        lm = self._models.get(replace(first.config, dataset=text.dataset, device=self.device))
        return _Reading(decided_by, known, Evaluator(lm, open_text(text.dataset, cache)))

    def _evaluate(self, subject: _Subject, text: _Text, reading: _Reading) -> KeptEvaluation:
        assert reading.evaluator is not None
        found = reading.evaluator.evaluate(subject.one.load(), subject.run.config)
        kept, name = KeptEvaluation(found.metrics, found.densities.numpy()), subject.one.name
        with hold_sweep(self.folder), deferred():
            write_kept(self._file(name, text), reading.decided_by[name], kept)
        return kept

    def _file(self, name: str, text: _Text) -> Path:
        """The file of an SAE's evaluation on a text: a digest, for names may be too long for two of them."""
        return self.folder.transfer / "evaluations" / f"{digest([name, text.label])}.parquet"


def _by_model(subjects: Sequence[_Subject]) -> list[list[_Subject]]:
    """SAEs of the same model and packing, those of a layer together."""
    groups: dict[object, list[_Subject]] = {}
    for subject in sorted(subjects, key=lambda subject: subject.run.config.layer):
        config = subject.run.config
        groups.setdefault((config.model, config.packing), []).append(subject)
    return list(groups.values())


def _transferred(subject: _Subject, text: _Text, found: KeptEvaluation) -> Transferred:
    synthetic = isinstance(text.dataset, SyntheticDataset)  # there is no language model to lose anything
    metrics = {
        name: math.nan if synthetic and name.startswith("ce_") else value
        for name, value in found.metrics.items()
    }
    return Transferred(
        run=subject.one.name,
        keys=subject.keys,
        trained_on=subject.trained_on,
        read=text.label,
        undertrained=subject.undertrained,
        densities=found.densities,
        metrics=metrics,
    )
