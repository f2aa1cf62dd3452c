"""`task=generate`: samples the text of `dataset=faithful` ahead, and says how far other texts are from it.

The text may be a dataset, a part of a mixture, or what a domain is selected from.

Torch is imported only where there is a text to sample.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from sae_sweep.activations.model_files import same_model
from sae_sweep.config import ConfigError, FaithfulDataset, RunConfig, SaeSweepError, first_line
from sae_sweep.config.mixture import sampled_texts, texts_of
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.signals import at_once, stop_signals
from sae_sweep.store import cache_folder

log = logging.getLogger(__name__)


def generate(request: Request) -> int:
    """Sample the texts of a command, and compare each with the command's other datasets; returns 0.

    Raises:
        ConfigError: if the command has no dataset=faithful.
        SaeSweepError: if a model cannot sample text, or another dataset cannot be read.
    """
    wanted = _wanted(request)
    if not wanted:
        raise ConfigError(["task=generate samples the text of dataset=faithful, which this command lacks"])
    _name_foreign_readers(request)
    _sample(request)
    with at_once():
        from sae_sweep.tasks.divergences import compare, described

    texts = dict.fromkeys(text for one in request.runs for text in texts_of(one.config.dataset))
    others = [text for text in texts if not isinstance(text, FaithfulDataset)]
    cache, as_json = cache_folder(request.command.paths.cache), request.command.format == "json"
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    found = []
    with stop_signals():
        for dataset, run in wanted.items():
            found.append(compare(dataset, others, cache, run.device))
            if not as_json:
                show(described(found[-1], width))
    if as_json:
        show(json.dumps({"sampled": found}, indent=2) + "\n")
    return 0


def sample_missing(request: Request) -> None:
    """Sample the texts of a command that the cache lacks, before its runs are planned.

    Raises:
        SaeSweepError: if a model cannot sample text, or the runs are for SLURM, whose login nodes should not.
    """
    _name_foreign_readers(request)
    if request.command.launcher.kind == "slurm":
        _refuse_missing(request)
    else:
        _sample(request)


def _sample(request: Request) -> None:
    for dataset, run in _wanted(request).items():
        with at_once():
            from sae_sweep.activations.sampling import sample_text

        with stop_signals(), _enough_memory(dataset):
            sample_text(dataset, cache_folder(request.command.paths.cache), run.device)


@contextmanager
def _enough_memory(dataset: FaithfulDataset) -> Iterator[None]:
    """Say in one line what to do if memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        from sae_sweep.training.faults import out_of_memory

        if not out_of_memory(error):
            raise
        raise SaeSweepError(
            f"dataset={dataset.name}: memory ran out ({first_line(error)}): lower dataset.block="
            f"{dataset.block} or dataset.longest={dataset.longest}; either gives other text"
        ) from error


def _name_foreign_readers(request: Request) -> None:
    """Say which models read text that another one sampled."""
    read = ((text, one.config.model) for one in request.runs for text in sampled_texts(one.config.dataset))
    for text, model in dict.fromkeys(read):
        try:
            is_own = same_model(text.model, model)
        except SaeSweepError as error:
            raise SaeSweepError(f"dataset={text.name}, sampled by {text.path}: {error}") from error
        if not is_own:
            log.warning(
                "dataset=%s: %s reads text that %s sampled, not its own, and tokenises it anew: leave "
                "dataset.path out for its own",
                *(text.name, model.label, text.path),
            )


def _refuse_missing(request: Request) -> None:
    for dataset in _wanted(request):
        with at_once():
            from sae_sweep.activations.sampling import is_sampled

        if not is_sampled(dataset, cache_folder(request.command.paths.cache)):
            raise SaeSweepError(
                f"dataset={dataset.name}: {dataset.path} has not sampled its text yet, and SLURM's jobs need "
                "it: run the same command with task=generate in a job of its own first"
            )


def _wanted(request: Request) -> dict[FaithfulDataset, RunConfig]:
    """Texts to sample, each with a run that reads it."""
    found: dict[FaithfulDataset, RunConfig] = {}
    for one in request.runs:
        for text in sampled_texts(one.config.dataset):
            found.setdefault(text, one.config)
    return found
