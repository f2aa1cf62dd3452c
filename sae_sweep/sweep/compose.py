"""From command-line overrides to the configs of the runs."""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sae_sweep.config import ARCHITECTURES, Config, ConfigError

log = logging.getLogger(__name__)

REFERENCE_GROUPS = ("model", "dataset", "architecture", "numerics", "activations")
"""Choices whose own defaults a run's name is compared with."""
REQUIRED = {"dataset=files": "dataset.path=given"}
"""What a choice needs before its defaults make a valid config."""
NOT_SWEPT = ("launcher", "experiment", "task", "action", "stream", "sweep", "tracking")
"""Keys that belong to the sweep as a whole."""
SPARSITY_KEYS = tuple(dict.fromkeys(key for cls in ARCHITECTURES.values() for key in cls.uses))


def expand(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """One list of overrides a run: comma lists multiply, and so do the lists of each of `grids`.

    Values given on the command line stand in for those of the grids.

    Raises:
        ConfigError: for sweeps that are no comma list, and for keys that cannot be swept.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    problems = [
        f"{override.get_key_element()} cannot be swept: it belongs to the sweep as a whole"
        for override in overrides
        if override.is_sweep_override() and override.get_key_element().split(".")[0] in NOT_SWEPT
    ]
    if problems:
        raise ConfigError(problems)
    typed = {override.get_key_element(): _values(override) for override in overrides}
    grids: Any = OmegaConf.to_container(master.grids) or [{}]
    points = []
    for grid in grids:
        axes = {key: _grid_values(key, value) for key, value in grid.items()} | typed
        points += [list(point) for point in itertools.product(*axes.values())]
    return points


def _grid_values(key: str, value: Any) -> list[str]:
    return [f"{key}={one}" for one in (value if isinstance(value, list) else [value])]


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError([f"{override.input_line}: give the values as a comma list"])
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def compose(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader
) -> tuple[list[Config], list[Config]]:
    """Every run of the sweep, and for each the defaults its name is compared with.

    Raises:
        ConfigError: all problems of all runs at once.
    """
    configs: list[Config] = []
    references: list[Config] = []
    problems: list[str] = []
    known_references: dict[tuple[str, ...], Config] = {}
    points = expand(arguments, master, loader)
    for overrides in points:
        composed = _compose_one(overrides, master, loader)
        try:
            configs.append(to_config(composed))
        except ConfigError as error:
            problems += error.problems
            continue
        choices = tuple(f"{group}={composed.hydra.runtime.choices[group]}" for group in REFERENCE_GROUPS)
        if choices not in known_references:
            known_references[choices] = to_config(
                _compose_one([*choices, *(REQUIRED[c] for c in choices if c in REQUIRED)], master, loader)
            )
        references.append(known_references[choices])
    problems += _meaningless(points, configs) if not problems else []
    if problems:
        raise ConfigError(problems)
    return configs, references


def _compose_one(overrides: Sequence[str], master: DictConfig, loader: ConfigLoader) -> DictConfig:
    # not load_sweep_config: it would overwrite the run's own group choices with the master's
    hydra_overrides = list(master.hydra.overrides.hydra)
    return loader.load_configuration(
        config_name=master.hydra.job.config_name,
        overrides=[*hydra_overrides, *overrides],
        run_mode=RunMode.RUN,
    )


def to_config(composed: DictConfig) -> Config:
    """The typed config of one run; keys without meaning for its architecture become null.

    Raises:
        ConfigError: all problems of the run.
    """
    own = OmegaConf.masked_copy(composed, [field.name for field in dataclasses.fields(Config)])
    parts: Any = OmegaConf.to_object(own)
    uses = parts["architecture"].uses
    unused = {key: None for key in SPARSITY_KEYS if key not in uses}
    return Config(**{**parts, **unused})


def _meaningless(points: Sequence[Sequence[str]], configs: Sequence[Config]) -> list[str]:
    """Sparsity keys that were given but mean nothing to any run; those that do to some are said once."""
    given = {override.split("=")[0].lstrip("+") for point in points for override in point}
    kinds = {config.architecture.kind: config.architecture for config in configs}
    problems = []
    for key in SPARSITY_KEYS:
        without = [kind for kind, architecture in kinds.items() if key not in architecture.uses]
        if key not in given or not without:
            continue
        if len(without) == len(kinds):
            uses = sorted({used for architecture in kinds.values() for used in architecture.uses})
            problems.append(f"{key} means nothing to {', '.join(without)}: its key is {', '.join(uses)}")
        else:
            log.info("%s means nothing to %s: dropped there", key, ", ".join(without))
    return problems
