"""`task=analyse sweep=NAME`: what the features of a sweep's SAEs do, and the text that makes them fire."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sae_sweep.activations import LanguageModel
from sae_sweep.analysis.contexts import Window
from sae_sweep.analysis.features import Kept, Subject, Text, analyse_features
from sae_sweep.config import CommandConfig, SaeSweepError
from sae_sweep.config.pasted import pasted
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.group import Models
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report.analysis_files import write_analysis
from sae_sweep.saes import load_sae
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import (
    PlannedRun,
    SweepFolder,
    cache_folder,
    find_sweep,
    hold,
    planned_run,
    read_plan,
    read_shown_status,
)
from sae_sweep.text import held_out_sequences, open_text, token_mask

log = logging.getLogger(__name__)


def analyse(request: Request) -> int:
    """Run `task=analyse`: write what the features of every finished run of the sweep do into `features/`.

    Runs that read the same text share each pass of the language model.

    Returns the number of runs that are left out: a file of theirs is damaged, gone, or cannot be written.

    Raises:
        SaeSweepError: if there is no such sweep, or none of its runs is finished.
    """
    command, device = request.command, request.runs[0].config.device
    folder = find_sweep(command)
    left_out: dict[str, SaeSweepError] = {}
    groups: dict[Any, list[PlannedRun]] = {}
    for run in _finished(folder, left_out):
        content = tuple(sorted(run.fingerprints.items()))
        groups.setdefault((run.config.model, run.config.dataset, run.config.packing, content), []).append(run)
    models, written = Models(), 0
    for group in groups.values():
        try:
            first = replace(group[0].config, device=device)
            refuse_other_content(group[0], cache_folder(command.paths.cache))
            written += _analyse_group(group, models.get(first), command, left_out)
        except SaeSweepError as error:
            left_out.update(dict.fromkeys((run.name for run in group), error))
    for name, why in left_out.items():
        log.error("%s is left out: %s", name, why)
    if not groups and not left_out:
        raise SaeSweepError(f"{folder.root}: no run is finished yet; task=status shows how far they are")
    if written:
        show(f"What features do: {pasted(folder.root)}/*/features/*.parquet\n")
    return len(left_out)


def _finished(folder: SweepFolder, left_out: dict[str, SaeSweepError]) -> Iterator[PlannedRun]:
    for record in read_plan(folder)["runs"]:
        try:
            if read_shown_status(folder.run(record["name"]), record["id"]).state == "done":
                yield planned_run(record, folder)
        except SaeSweepError as error:
            left_out[record["name"]] = error


def _analyse_group(
    group: Sequence[PlannedRun], lm: LanguageModel, command: CommandConfig, left_out: dict[str, SaeSweepError]
) -> int:
    """Analyse the runs of one text and write what was found; returns how many they were."""
    settings, config = command.analysis, group[0].config
    source = open_text(config.dataset, cache_folder(command.paths.cache))
    tokens = held_out_sequences(source, config.packing, lm.tokenizer, settings.tokens)
    mask = token_mask(tokens, lm.tokenizer.special_ids, config.packing)
    subjects: dict[str, Subject] = {}
    for run in group:
        try:
            sae = load_sae(run.folder.sae, run.run_id).to(lm.device).eval()
            subjects[run.name] = Subject(sae, run.config.layer)
        except SaeSweepError as error:
            left_out[run.name] = error
    if not subjects:
        return 0
    kept = Kept(settings.top, settings.sample, Window(settings.before, settings.after))
    found = analyse_features(
        subjects, lm, Text(tokens, mask), lm.sizes.vocabulary, kept, between=raise_if_requested
    )
    strings = lm.tokenizer.strings(lm.sizes.vocabulary)
    log.info("%s: %s tokens for %d SAEs", lm.name, f"{int(mask.sum()):,}", len(found))
    written = 0
    for run in (run for run in group if run.name in found):
        try:
            with hold(run.folder):
                write_analysis(run.folder.features, run.run_id, found[run.name], strings)
            written += 1
        except SaeSweepError as error:
            left_out[run.name] = error
    return written
