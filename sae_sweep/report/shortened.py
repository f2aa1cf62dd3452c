"""Short names of the runs of a sweep: what tells them apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.config import ConfigError, run_from_dict
from sae_sweep.config.swept import swept_keys
from sae_sweep.report.formatting import short_labels


def short_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One short name per run of `plan.json`, all different: `docs seed 42`.

    Args:
        runs: records with `name` and `config`; where a config is damaged or of another version, the short
            names are made from the names alone.
    """
    names = [run["name"] for run in runs]
    if len(runs) < 2:
        return names
    try:
        return short_labels(names, swept_keys([run_from_dict(run["config"]) for run in runs]))
    except (ConfigError, KeyError, TypeError):
        return short_labels(names)
