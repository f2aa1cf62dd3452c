"""The keys that tell the runs of a sweep apart, with the values of each run."""

from collections.abc import Sequence
from typing import Any

from sae_sweep.config.plain import flatten
from sae_sweep.config.run import RunConfig

_COVERED = ("model.", "dataset.", "architecture.")
"""Keys that `main_keys` has under shorter names."""


def swept_keys(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Keys of each run whose values differ between runs, by their command-line names."""
    flat = [named_keys(config) for config in configs]
    varying = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({str(one[key]) for one in flat if key in one}) > 1
    ]
    return [{key: one[key] for key in varying if key in one} for one in flat]


def named_keys(config: RunConfig) -> dict[str, Any]:
    """All keys that determine a run's weights, by their command-line names."""
    named = main_keys(config)
    rest = {
        key: value
        for key, value in flatten(config.weight_keys()).items()
        if key not in named and not key.startswith(_COVERED)
    }
    if config.shuffle_seed in (None, config.data_seed):
        rest["shuffle_seed"] = None  # it follows data_seed, and is no difference of its own
    return {**named, **rest}


def main_keys(config: RunConfig) -> dict[str, Any]:
    """The keys that name a run."""
    return {
        "model": config.model.label,
        "layer": config.layer,
        "dataset": config.dataset.name,
        "architecture": config.architecture.kind,
        **{key: getattr(config.architecture, key) for key in config.architecture.uses},
        "dictionary": config.dictionary,
        "seed": config.seed,
    }
