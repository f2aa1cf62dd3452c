"""`task=generate`: samples the text of `dataset=faithful` ahead, and says how far other texts are from it.

Torch is imported only where there is a text to sample.
"""

from sae_sweep.config import FaithfulDataset, RunConfig, SaeSweepError
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.signals import at_once, stop_signals
from sae_sweep.store import cache_folder


def generate(request: Request) -> int:
    """Sample the texts of a command, and compare each with the command's other datasets; returns 0.

    Raises:
        SaeSweepError: if the command has no dataset=faithful, a model cannot sample text, or another dataset
            cannot be read.
    """
    wanted = _wanted(request)
    if not wanted:
        raise SaeSweepError("task=generate samples the text of dataset=faithful, which this command lacks")
    _sample(request)
    with at_once():
        from sae_sweep.tasks.divergences import compare

    others = dict.fromkeys(one.config.dataset for one in request.runs)
    with stop_signals():
        for dataset, run in wanted.items():
            rest = [other for other in others if not isinstance(other, FaithfulDataset)]
            show(compare(dataset, rest, cache_folder(request.command.paths.cache), run.device))
    return 0


def sample_missing(request: Request) -> None:
    """Sample the texts of a command that the cache lacks, before its runs are planned.

    Raises:
        SaeSweepError: if a model cannot sample text, or the runs are for SLURM, whose login nodes should not.
    """
    if request.command.launcher.kind == "slurm":
        _refuse_missing(request)
    else:
        _sample(request)


def _sample(request: Request) -> None:
    for dataset, run in _wanted(request).items():
        with at_once():
            from sae_sweep.activations.sampling import sample_text

        with stop_signals():
            sample_text(dataset, cache_folder(request.command.paths.cache), run.device)


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
        if isinstance(one.config.dataset, FaithfulDataset):
            found.setdefault(one.config.dataset, one.config)
    return found
