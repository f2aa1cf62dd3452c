"""`task=analyse`: what the features of SAEs do, and the text that makes them fire."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sae_sweep.activations import LanguageModel
from sae_sweep.activations.positions import PositionChange
from sae_sweep.analysis.contexts import Window
from sae_sweep.analysis.feature_results import Settings, feature_results
from sae_sweep.analysis.features import (
    FeatureAnalysis,
    Kept,
    Memory,
    PositionAnalysis,
    Subject,
    Text,
    analyse_features,
    analyse_positions,
    memory_needed,
)
from sae_sweep.analysis.logit_effects import Unembedding
from sae_sweep.config import CommandConfig, PackingConfig, SaeSweepError
from sae_sweep.config.analysis import INTERVENTIONS, AnalysisConfig
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.group import Models
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text, position_text
from sae_sweep.report.analysis_files import write_analysis
from sae_sweep.report.formatting import size
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import cache_folder, hold
from sae_sweep.tasks.analysed import Analysed, selected
from sae_sweep.tasks.feature_figures import Written, in_layers, write_features
from sae_sweep.tasks.report import write_report
from sae_sweep.text import held_out_sequences, open_text, token_mask
from sae_sweep.training import free_bytes

log = logging.getLogger(__name__)

_STUDY_SEQ_LEN = 1024
"""Tokens per sequence of the study's figures."""
_CHECKED = (2, 128)
"""Number and largest length of the sequences on which the unembedding is checked: their logits are held."""


def analyse(request: Request) -> int:
    """Run `task=analyse`: write what the features of SAEs do into their `features/`.

    SAEs that read the same text share each pass of the language model.

    Returns the number of SAEs that are left out: a file of theirs is damaged, gone, or cannot be written.

    Raises:
        SaeSweepError: if the command names no SAE that is trained.
    """
    command, device = request.command, request.runs[0].config.device
    selection = selected(request)
    models = Models()
    written: list[Written] = []
    for group in _by_text(_wanted(selection.saes, command)):
        try:
            lm = models.get(replace(group[0].config, device=device))
            for one in group:
                if one.run is not None:
                    refuse_other_content(one.run, cache_folder(command.paths.cache))
                    break
            written += _analyse_group(lm, command, group, selection.left_out)
        except SaeSweepError as error:
            selection.left_out.update(dict.fromkeys((one.name for one in group), error))
    for name, why in selection.left_out.items():
        log.error("%s is left out: %s", name, why)
    if written:
        what = "features" if len(written) == 1 else f"features (1 of {len(written)})"
        files = {what: written[0].sae.folder.features}
        if command.figures != "none":
            found = write_features(selection.sweep, written, command)
            files |= found.files
            if found.positions:
                show(f"{position_text(found.positions)}\n\n")
        if selection.sweep.plan.exists():
            files = write_report(selection.sweep) | files
        show(f"{files_text(files)}\n")
    return len(selection.left_out)


def _wanted(saes: Sequence[Analysed], command: CommandConfig) -> Sequence[Analysed]:
    """The SAEs; for a paper's figures, which compare layers, only those of several layers, if any are."""
    layers = in_layers(saes) if command.figures == "paper" else []
    if not layers:
        return saes
    log.info("figures=paper: %d of %d SAEs differ in their layer alone", sum(map(len, layers)), len(saes))
    return [one for group in layers for one in group]


def _by_text(saes: Sequence[Analysed]) -> list[list[Analysed]]:
    """SAEs of the same model, text and packing."""
    groups: dict[Any, list[Analysed]] = {}
    for one in saes:
        content = tuple(sorted(one.content.items()))
        groups.setdefault((one.config.model, one.config.dataset, one.config.packing, content), []).append(one)
    return list(groups.values())


@dataclass(frozen=True)
class _Reading:
    """A text as SAEs read it through a language model, and the changes of it that they are compared with."""

    lm: LanguageModel
    text: Text
    changes: Mapping[str, PositionChange]
    unembedding: Unembedding | None
    strings: Sequence[str]
    """Text of each token id."""
    settings: AnalysisConfig

    @property
    def kept(self) -> Kept:
        asked = self.settings
        return Kept(asked.top, asked.sample, Window(asked.before, asked.after), asked.seed)


def _reading(lm: LanguageModel, command: CommandConfig, one: Analysed) -> _Reading:
    """Pack the text of a group of SAEs, and see what can be changed in the model."""
    settings, source = command.analysis, open_text(one.config.dataset, cache_folder(command.paths.cache))
    packing = _packing(settings, one.config.packing, lm.n_ctx)
    if packing.seq_len > lm.n_ctx:
        raise SaeSweepError(
            f"analysis.seq_len={packing.seq_len}: {lm.name} reads at most {lm.n_ctx} tokens per sequence"
        )
    tokens = held_out_sequences(source, packing, lm.tokenizer, settings.tokens)
    mask = token_mask(tokens, lm.tokenizer.special_ids, packing)
    return _Reading(
        lm,
        Text(tokens, mask),
        _changes(lm, command),
        _unembedding(lm, tokens),
        lm.tokenizer.strings(lm.sizes.vocabulary),
        settings,
    )


def _packing(settings: AnalysisConfig, trained: PackingConfig, n_ctx: int) -> PackingConfig:
    if settings.numerics == "study":
        seq_len = settings.seq_len or min(_STUDY_SEQ_LEN, n_ctx)
        return replace(trained, seq_len=seq_len, bos_every_sequence=True, mask_special=False)
    return replace(trained, seq_len=settings.seq_len or trained.seq_len)


def _changes(lm: LanguageModel, command: CommandConfig) -> dict[str, PositionChange]:
    """The changes of positional embeddings that are asked for, or that the figures need.

    Raises:
        SaeSweepError: if some are asked for, and the model learned no such embeddings.
    """
    asked = command.analysis
    kinds = INTERVENTIONS[asked.positions]
    study = asked.numerics == "study"
    try:
        lm.check_changes_positions()
    except SaeSweepError as error:
        if kinds:
            raise
        if command.figures == "paper":
            log.info("%s", error)
        return {}
    if command.figures == "paper":
        kinds = INTERVENTIONS["both"]
    return {
        kind: PositionChange(kind, asked.per_sequence or study, asked.move_first or study, asked.seed)
        for kind in kinds
    }


def _unembedding(lm: LanguageModel, tokens: Any) -> Unembedding | None:
    count, length = _CHECKED
    try:
        return lm.unembedding(torch.from_numpy(tokens[:count, :length]).long())
    except SaeSweepError as error:
        log.warning("no direct logit effects: %s", error)
        return None


def _analyse_group(
    lm: LanguageModel, command: CommandConfig, group: Sequence[Analysed], left_out: dict[str, SaeSweepError]
) -> list[Written]:
    """Analyse the SAEs of one text and write what was found; returns those that were written."""
    reading = _reading(lm, command, group[0])
    log.info("%s: %s tokens, SAEs: %d", lm.name, f"{int(reading.text.mask.sum()):,}", len(group))
    written: list[Written] = []
    for part in _parts(group, reading, left_out):
        written += _analyse_part(reading, part, left_out)
    return written


def _analyse_part(
    reading: _Reading, part: Sequence[Analysed], left_out: dict[str, SaeSweepError]
) -> list[Written]:
    """Analyse SAEs that fit into memory together; what they held is free afterwards."""
    lm, text = reading.lm, reading.text
    subjects = dict(_subjects(part, reading, left_out))
    if not subjects:
        return []
    found = analyse_features(
        subjects, lm, text, len(reading.strings), reading.kept, between=raise_if_requested
    )
    changed: dict[str, dict[str, PositionAnalysis]] = {}
    for kind, change in reading.changes.items():
        with lm.changed_positions(change):
            changed[kind] = analyse_positions(subjects, lm, text, between=raise_if_requested)
    written = []
    for one in (one for one in part if one.name in found):
        of_changes = {kind: by_name[one.name] for kind, by_name in changed.items()}
        try:
            written.append(_write(one, found[one.name], of_changes, reading))
        except SaeSweepError as error:
            left_out[one.name] = error
    return written


def _parts(
    group: Sequence[Analysed], reading: _Reading, left_out: dict[str, SaeSweepError]
) -> Iterator[Sequence[Analysed]]:
    """The SAEs in consecutive parts of at least one that fit into half of the free memory.

    One whose tables alone are larger than the free memory is left out.
    """
    part: list[Analysed] = []
    free = free_bytes(reading.lm.device)
    room = [bytes_ // 2 for bytes_ in free]
    for one in group:
        needed = _memory(one, reading)
        if needed.tables > free[0]:
            left_out[one.name] = SaeSweepError(
                f"its contexts need {size(needed.tables)} of memory, and {size(free[0])} are free: lower "
                "analysis.top, sample, before or after"
            )
            continue
        each = needed if len(free) > 1 else [sum(needed)]
        if part and any(more > left for more, left in zip(each, room, strict=True)):
            yield part
            part, free = [], free_bytes(reading.lm.device)
            room = [bytes_ // 2 for bytes_ in free]
        part.append(one)
        room = [left - more for left, more in zip(room, each, strict=True)]
    yield part


def _memory(one: Analysed, reading: _Reading) -> Memory:
    """Memory of the analysis of an SAE, its weights included."""
    d_model = reading.lm.d_model
    d_sae = one.config.dictionary * d_model if one.run else one.load().d_sae
    needed = memory_needed(d_sae, reading.text, reading.kept, 1 + len(reading.changes))
    return needed._replace(tables=needed.tables + 8 * d_sae * d_model)


def _subjects(
    part: Sequence[Analysed], reading: _Reading, left_out: dict[str, SaeSweepError]
) -> Iterator[tuple[str, Subject]]:
    lm = reading.lm
    for one in part:
        try:
            lm.check([one.config.layer], reading.text.seq_len)
            sae = one.load()
            if sae.d_in != lm.d_model:
                raise SaeSweepError(
                    f"it reads residuals of width {sae.d_in}, and those of {lm.name} have {lm.d_model}: give "
                    "the model that it was trained on"
                )
            yield one.name, Subject(sae.to(lm.device).eval(), one.config.layer)
        except SaeSweepError as error:
            left_out[one.name] = error


def _write(
    one: Analysed, analysis: FeatureAnalysis, changed: Mapping[str, PositionAnalysis], reading: _Reading
) -> Written:
    asked = reading.settings
    if not analysis.firing.by_feature().active.any():
        log.warning(
            "%s: no feature fires on this text: are model, layer and dataset those of the SAE?", one.name
        )
    settings = Settings(permutations=asked.permutations, seed=asked.seed)
    results = feature_results(
        one.name, analysis, changed, reading.unembedding, settings, between=raise_if_requested
    )
    with hold(one.folder):
        write_analysis(one.folder.features, one.owner, results, reading.strings)
    return Written(one, results.tests)
