"""Finds the fine-tuned SAEs of a sweep, and those from scratch that are alike in all else."""

from collections.abc import Mapping, Sequence

from sae_sweep.analysis.fine_tuning import Setting, Tuned, effects
from sae_sweep.report.fine_tuning import Domain
from sae_sweep.tasks.finished import Finished

_WITHIN = ("init.sae", "optimizer.tilt", "data_seed", "shuffle_seed", "seed")
"""Swept keys in which the SAEs of a domain may differ."""


def find_domains(found: Sequence[Finished], metrics: Mapping[str, Mapping[str, float]]) -> list[Domain]:
    """The domains of compared SAEs: each has SAEs that are fine-tuned and evaluated beside their start.

    Args:
        found: the runs, with their swept keys.
        metrics: of their evaluation, by their names.
    """
    groups: dict[str, list[Finished]] = {}
    for one in found:
        keys = {key: value for key, value in one.entry.keys.items() if key not in _WITHIN}
        groups.setdefault(", ".join(f"{key}={value}" for key, value in keys.items()), []).append(one)
    domains = []
    for label, members in groups.items():
        runs = [_tuned(one, metrics[one.entry.name]) for one in members]
        if any("start_explained_variance" in run.metrics for run in runs):
            domains.append(Domain(label, tuple(run.name for run in runs), effects(runs)))
    return [one._replace(label="") for one in domains] if len(groups) == 1 else domains


def _tuned(one: Finished, metrics: Mapping[str, float]) -> Tuned:
    config = one.config
    start = one.entry.keys.get("init.sae", config.init.label)  # told apart by content where there are several
    setting = Setting(start or "", config.optimizer.tilt)
    shuffled = config.data_seed if config.shuffle_seed is None else config.shuffle_seed
    return Tuned(one.entry.name, setting, (config.data_seed, shuffled, config.seed), metrics)
