"""What is known to be wrong with runs before anything trains: needs no language model and no network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sae_sweep.config import ConfigError, SaeSweepError
from sae_sweep.store import PlannedRun


def refuse_known_problems(runs: Sequence[PlannedRun], cache: Path) -> list[str]:
    """Refuse runs whose held-out text fills no sequence, or that their model does not suit.

    Of a model on the hub, that is known if its config and tokenizer are in the hub's cache on this disk.

    Args:
        runs: runs that are to be trained.
        cache: folder of the embedded corpora.

    Returns:
        What each local text holds, in one line.

    Raises:
        ConfigError: with all problems.
        SaeSweepError: if a file of a text or a tokenizer is damaged.
    """
    from sae_sweep.activations.model_files import on_disk
    from sae_sweep.activations.tokenizer_file import counting_tokenizer, tokenizer_problem
    from sae_sweep.saes import start_problem
    from sae_sweep.text import held_out_sequences, open_text

    models = {model: on_disk(model) for model in dict.fromkeys(run.config.model for run in runs)}
    found = [tokenizer_problem(model) for model in models.values()]
    problems = dict.fromkeys(problem for problem in found if problem)
    for run in runs:
        try:
            replace(run.config, model=models[run.config.model])
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    starts = dict.fromkeys(run.config for run in runs if run.config.init.sae is not None)
    problems.update(dict.fromkeys(filter(None, map(start_problem, starts))))
    here = [run.config for run in runs if not run.config.dataset.on_hub]
    texts = {dataset: open_text(dataset, cache) for dataset in dict.fromkeys(run.dataset for run in here)}
    for model, dataset, packing in dict.fromkeys((run.model, run.dataset, run.packing) for run in here):
        try:
            held_out_sequences(texts[dataset], packing, counting_tokenizer(models[model]), tokens=1)
        except SaeSweepError as error:
            problems[str(error)] = None
    if problems:
        raise ConfigError(list(problems))
    return [text.summary for text in texts.values() if text.summary]
