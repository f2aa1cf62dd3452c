"""`task=export`: the features of SAEs in the forms of other tools."""

import logging
from dataclasses import replace
from pathlib import Path

from sae_sweep.activations.model_files import local_path
from sae_sweep.config import SYNTHETIC, CommandConfig, SaeSweepError
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.analysis_files import analysis_owner
from sae_sweep.report.delphi import Read, write_delphi
from sae_sweep.report.neuronpedia import Source, write_neuronpedia
from sae_sweep.store import SweepFolder, hold
from sae_sweep.tasks.analysed import Analysed, selected
from sae_sweep.tasks.on_text import Reader, Reading

log = logging.getLogger(__name__)


def export(request: Request) -> int:
    """Write the features of a sweep's SAEs, or of one, into their `export/`.

    Neuronpedia gets what `task=analyse` wrote. Delphi needs every activation on a text, so it is read again.

    Returns the number of SAEs that are left out: a file of theirs is missing or damaged, or not writable.

    Raises:
        SaeSweepError: if the command names no SAE that is trained.
    """
    command, device = request.command, request.runs[0].config.device
    selection = selected(request)
    reading = Reading(_on_analysed_text(command), device)
    written: list[Path] = []
    for one in selection.saes:
        try:
            if command.format == "neuronpedia":
                written.append(_neuronpedia(one, selection.sweep))
            else:
                written.append(_delphi(one, reading))
        except SaeSweepError as error:
            selection.left_out[one.name] = error
    for name, why in selection.left_out.items():
        log.error("%s is left out: %s", name, why)
    if written:
        what = command.format if len(written) == 1 else f"{command.format} (1 of {len(written)})"
        show(f"{files_text({what: written[0]})}\n")
    return len(selection.left_out)


def _neuronpedia(one: Analysed, sweep: SweepFolder) -> Path:
    config = one.config
    layers, _ = config.model.shape or (0, 0)
    if analysis_owner(one.folder.features) is None:
        raise SaeSweepError("its features are not analysed yet: run task=analyse first")
    names = (sweep.root.name, one.name, config.dataset.name)
    source = Source(config.model.label, layers, config.layer, *names)
    with hold(one.folder):
        return write_neuronpedia(one.folder.export / "neuronpedia", source, one.folder.features, one.owner)


def _delphi(one: Analysed, reading: Reading) -> Path:
    if one.config.model.path == SYNTHETIC:
        raise SaeSweepError("it reads synthetic activations, which have no text to explain")
    seq_len = reading.command.analysis.seq_len or one.config.packing.seq_len
    config = replace(one.config, packing=replace(one.config.packing, seq_len=seq_len))
    tokens, codes = reading.text_codes(Reader(one.name, config, one.load, one.run))
    tokenizer = str(local_path(config.model) or config.model.path)
    read = Read(tokenizer, config.hook, config.dataset.name)
    with hold(one.folder):
        return write_delphi(one.folder.export / "delphi", read, tokens, codes)


def _on_analysed_text(command: CommandConfig) -> CommandConfig:
    """The command, reading as much text as task=analyse does."""
    return replace(command, matching=replace(command.matching, tokens=command.analysis.tokens))
