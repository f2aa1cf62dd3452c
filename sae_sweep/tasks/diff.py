"""`task=diff`: how two datasets differ, seen through SAEs."""

import logging
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sae_sweep.activations import LanguageModel
from sae_sweep.analysis.contexts import Window
from sae_sweep.analysis.dataset_diff import DocumentText, difference, read_documents
from sae_sweep.analysis.features import Subject, Text
from sae_sweep.config import (
    SYNTHETIC,
    CommandConfig,
    ConfigError,
    DatasetConfig,
    PackingConfig,
    RunConfig,
    SaeSweepError,
)
from sae_sweep.config.names import made_plain
from sae_sweep.config.swept import swept_keys
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.group import Models
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.diff_files import Compared, chosen, diff_text, more_often, summary, write_diff
from sae_sweep.report.formatting import described, short_labels
from sae_sweep.signals import deferred, raise_if_requested
from sae_sweep.store import cache_folder, hold_sweep
from sae_sweep.tasks.analysed import Analysed, Selection, left_out_lines, selected
from sae_sweep.tasks.finished import labelled
from sae_sweep.tasks.report import write_report
from sae_sweep.tasks.tracked import track_section
from sae_sweep.text import fingerprint, held_out_documents, open_documents, token_mask

log = logging.getLogger(__name__)

_CONTEXTS = 5
"""Contexts of a feature in each dataset."""


class _Text(NamedTuple):
    """A dataset of the command, and its label."""

    label: str
    dataset: DatasetConfig


def diff(request: Request) -> int:
    """Run `task=diff`: compare how often the features of SAEs fire in the documents of two datasets.

    Returns the number of SAEs that are left out, each with a line that says why.

    Raises:
        ConfigError: if the command names no SAE, or not two datasets.
        SaeSweepError: if there is no such SAE, or both datasets hold the same text.
    """
    command, device = request.command, request.runs[0].config.device
    texts = _texts([run.config for run in request.runs], command)
    selection = selected(request)
    reading = _Reading(command, device)
    compared: list[Compared] = []
    for one in selection.saes:
        try:
            compared.append(reading.compare(one, texts))
        except SaeSweepError as error:
            selection.left_out[one.name] = error
    lines = left_out_lines(selection.left_out)
    for line in lines:
        log.error("%s", line)
    if compared:
        _write(selection, (texts[0].label, texts[1].label), compared, command, lines)
    return len(selection.left_out)


def _write(
    selection: Selection,
    names: tuple[str, str],
    compared: Sequence[Compared],
    command: CommandConfig,
    left_out: Sequence[str],
) -> None:
    """Write files and page, and show what differs most."""
    sweep = selection.sweep
    folder = sweep.diff(made_plain("_".join(names)))
    compared = _labelled(selection.saes, compared)
    read = {one.run for one in compared}
    about = described([one.config for one in selection.saes if one.run is not None and one.name in read])
    left_out = [line.replace(f"{sweep.root}/", "") for line in left_out]
    with hold_sweep(sweep), deferred():
        files = write_diff(folder, names, compared, command.analysis.top, about, left_out)
    numbers = {
        f"{one.run}/more in {name}": count
        for one in compared
        for name, count in zip(names, more_often(one), strict=True)
    }
    track_section(sweep, command, folder, numbers)
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    for one in chosen(compared):
        lines = textwrap.wrap(summary(names, one), width, break_on_hyphens=False)
        show("\n".join([*lines, diff_text(names, one, width)]) + "\n")
    opened = {"difference": files.figure, "features": files.features, "contexts": files.contexts}
    if sweep.plan.exists():
        opened = write_report(sweep) | opened
    show(f"{files_text(opened)}\n")


def _labelled(saes: Sequence[Analysed], compared: Sequence[Compared]) -> list[Compared]:
    """The comparisons with what tells their SAEs apart; of an SAE that is no run, only the name is known."""
    runs = [one for one in saes if one.run is not None]
    configs = labelled([one.config for one in runs], [one.content for one in runs])
    names = [one.name for one in runs]
    labels = dict(zip(names, short_labels(names, swept_keys(configs)), strict=True)) if len(names) > 1 else {}
    texts = {name: config.dataset.name for name, config in zip(names, configs, strict=True)}
    return [
        replace(one, label=labels.get(one.run, one.run), trained_on=texts.get(one.run, ""))
        for one in compared
    ]


def _texts(configs: Sequence[RunConfig], command: CommandConfig) -> list[_Text]:
    """The two datasets of the command, under labels that differ.

    Raises:
        ConfigError: if there are not two.
        SaeSweepError: if they hold the same text.
    """
    cache = cache_folder(command.paths.cache)
    kinds = list({repr(config.dataset): config for config in configs}.values())
    if len(kinds) != 2:
        raise ConfigError(
            [
                f"task=diff compares two datasets, and this command has {len(kinds)}: give two, such as "
                "dataset=stdlib_docs,stdlib_code"
            ]
        )
    contents = [{"corpus": fingerprint(config.dataset, cache)} for config in kinds]
    if contents[0] == contents[1]:
        raise SaeSweepError("task=diff: both datasets hold the same text: give two that differ")
    labels = [config.dataset.name for config in labelled(kinds, contents)]
    return [_Text(label, config.dataset) for label, config in zip(labels, kinds, strict=True)]


@dataclass
class _Reading:
    """Reads documents for the SAEs of a command; consecutive ones share a model and their documents."""

    command: CommandConfig
    device: str
    """As in a run's config."""
    _models: Models = field(default_factory=Models)
    _known: dict[tuple[object, str], DocumentText] = field(default_factory=dict)
    """Documents by model and packing, and by label."""

    def compare(self, one: Analysed, texts: Sequence[_Text]) -> Compared:
        """Compare two datasets through an SAE.

        Raises:
            SaeSweepError: if a text is too short, or the SAE does not fit the model.
        """
        if one.config.model.path == SYNTHETIC:
            raise SaeSweepError("it reads synthetic activations, which have no documents")
        lm = self._models.get(replace(one.config, device=self.device))
        if one.run is not None:
            refuse_other_content(one.run, cache_folder(self.command.paths.cache), ("model",))
        lm.check([one.config.layer], self._packing(one).seq_len)
        sae = one.load()
        if sae.d_in != lm.d_model:
            raise SaeSweepError(
                f"it reads residuals of width {sae.d_in}, and those of {lm.name} have {lm.d_model}: give the "
                "model that it was trained on"
            )
        subject, asked = Subject(sae.to(lm.device).eval(), one.config.layer), self.command.analysis
        a, b = (
            read_documents(
                subject,
                lm,
                self._documents(one, lm, text),
                contexts=_CONTEXTS,
                window=Window(asked.before, asked.after),
                between=raise_if_requested,
            )
            for text in texts
        )
        strings = lm.tokenizer.strings(lm.sizes.vocabulary)
        return Compared(one.name, a, b, difference(a, b), strings)

    def _packing(self, one: Analysed) -> PackingConfig:
        packing = one.config.packing
        return replace(packing, seq_len=self.command.analysis.seq_len or packing.seq_len)

    def _documents(self, one: Analysed, lm: LanguageModel, text: _Text) -> DocumentText:
        packing = self._packing(one)
        key = (one.config.model, packing), text.label
        if key not in self._known:
            source = open_documents(text.dataset, cache_folder(self.command.paths.cache))
            found = held_out_documents(source, packing, lm.tokenizer, self.command.analysis.tokens)
            mask = found.filled & token_mask(found.tokens, lm.tokenizer.special_ids, packing)
            self._known[key] = DocumentText(Text(found.tokens, mask), found.owners)
        return self._known[key]
