"""Composes the configs of the runs from command-line overrides."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.cli.composer import Composed, Composer
from sae_sweep.cli.diagnose import check
from sae_sweep.cli.grids import MOST_RUNS, Grid, Point, read_grids, union
from sae_sweep.cli.narrow import fits, unmet
from sae_sweep.cli.overrides import Command, read_command
from sae_sweep.cli.schema import GridKeys
from sae_sweep.config import (
    ARCHITECTURES,
    SPARSITY_KEYS,
    CommandConfig,
    ConfigError,
    RunConfig,
    digest,
    first_line,
)
from sae_sweep.plan import Request, WantedRun
from sae_sweep.tasks import command_class

log = logging.getLogger(__name__)

REFERENCE_GROUPS = ("model", "dataset", "architecture", "numerics", "activations")
"""Hydra groups whose choices give the defaults that a run's name is compared with."""
REQUIRED = {"dataset=files": "dataset.path=given"}
"""Overrides that a choice needs before its defaults make a valid config."""
Launch = Callable[[list[list[str]]], Any]


def compose(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launch: Launch | None = None
) -> Request:
    """Compose every run of the command, in the order of its grids and comma lists.

    Comma lists multiply. Where a grid has the key of an override, the override selects among the grids' runs;
    any other override applies to all runs.

    Raises:
        ConfigError: all problems of all runs at once.
    """
    grids = read_grids(master, check)
    command = read_command(arguments, loader, held={key for grid in grids for key in grid.held})
    composer = Composer(master, loader)
    asked = math.prod(map(len, command.swept.values())) * (sum(grid.size for grid in grids) if grids else 1)
    if asked > MOST_RUNS:
        raise ConfigError([f"the lists and grids multiply to {asked} runs, over {MOST_RUNS}: narrow them"])
    points = [
        Point({**point.values, **typed}, point.grids)
        for point in (union(grids) if grids else [Point({})])
        for typed in command.swept_points()
    ]
    everything = [composer.compose(command, point) for point in points]
    if problems := unmet(everything, command.wanted):
        raise ConfigError(problems)
    composed = [one for one in everything if fits(one, command.wanted)]
    keys, problems = _command(composed[0].values)
    runs: list[RunConfig] = []
    for one in composed:
        try:
            runs.append(_typed(one.values, RunConfig, keys))
        except ConfigError as error:
            problems += error.problems
    problems = problems or _unused_sparsity_keys(grids, command, everything, composed)
    if problems or keys is None:
        raise ConfigError(problems)
    wanted = [
        WantedRun(run, _reference(composer, one, keys), one.point.grids)
        for run, one in zip(runs, composed, strict=True)
    ]
    return Request(keys, wanted, _union_digest(everything, keys) if grids else None, launch)


def compose_first(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launch: Launch | None = None
) -> Request:
    """Compose a single run from the keys that all runs share; keys that the grids vary keep their defaults.

    Raises:
        ConfigError: all problems of that run.
    """
    command = read_command(arguments, loader, held=())
    first = next(command.swept_points())
    run, keys = to_configs(Composer(master, loader).compose(command, Point(first)).values)
    return Request(keys, [WantedRun(run, run)], launch=launch)


def to_configs(values: DictConfig) -> tuple[RunConfig, CommandConfig]:
    """Convert a composed config into the run's config and the command's.

    Raises:
        ConfigError: all problems of both.
    """
    keys, problems = _command(values)
    try:
        run = _typed(values, RunConfig, keys)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems or keys is None:
        raise ConfigError(problems)
    return run, keys


def _command(values: DictConfig) -> tuple[CommandConfig | None, list[str]]:
    cls = command_class()
    try:
        return _typed(values, cls), []
    except ConfigError as error:
        return None, list(error.problems)


def _typed(values: DictConfig, cls: type, command: CommandConfig | None = None) -> Any:
    """Build a config class from its keys, with the command's changes if a command is given.

    Raises:
        ConfigError: all problems of the keys.
    """
    if cls is RunConfig:
        _refuse_two_values(values)
    try:
        nodes = {key.name: values[key.name] for key in dataclasses.fields(cls)}  # resolves interpolations
        parts = {
            key: OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
            for key, node in nodes.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or cls.__name__}: {first_line(error)}"]) from error
    changes = command.changes(values.dataset.name) if command else {}
    return cls(**{**parts, **changes})


def _refuse_two_values(values: DictConfig) -> None:
    """Refuse a config that sets `k` and `architecture.k` to different values."""
    problems = [
        f"{key}={values[key]}, but architecture.{key}={values.architecture[key]}: they are one key, give one"
        for key in SPARSITY_KEYS
        if key in values.architecture
        and values[key] not in (values.architecture[key], getattr(GridKeys, key))
    ]
    if problems:
        raise ConfigError(problems)


def _reference(composer: Composer, run: Composed, command: CommandConfig) -> RunConfig:
    """Compose the defaults for the run's group choices; the composer caches each combination."""
    chosen = [f"{group}={run.choices[group]}" for group in REFERENCE_GROUPS]
    required = [REQUIRED[choice] for choice in chosen if choice in REQUIRED]
    values, _ = composer.load([*chosen, *required])
    return _typed(values, RunConfig)


def _union_digest(everything: Sequence[Composed], command: CommandConfig) -> str:
    """Digest of all runs of the grids; the sweep's folder may hold any of them."""
    known = []
    for one in everything:
        with suppress(ConfigError):  # invalid runs were not selected: the selected ones are all valid
            known.append(digest(_typed(one.values, RunConfig, command).weight_keys()))
    return digest(sorted(set(known)))


def _unused_sparsity_keys(
    grids: Sequence[Grid], command: Command, everything: Sequence[Composed], kept: Sequence[Composed]
) -> list[str]:
    """Problems of given sparsity keys that no run uses; a key that some runs use is logged once instead."""
    problems = []
    in_grids = {key for grid in grids for key in grid.held}
    for key in SPARSITY_KEYS:
        if key in in_grids:
            kinds = {run.choices["architecture"] for run in everything if key in run.point.values}
        elif key in command.keys:
            kinds = {run.choices["architecture"] for run in kept}
        else:
            continue
        without = sorted(kind for kind in kinds if key not in ARCHITECTURES[kind].uses)
        if len(without) == len(kinds):
            uses = sorted({used for kind in kinds for used in ARCHITECTURES[kind].uses})
            problems.append(f"{key} means nothing to {', '.join(without)}: its key is {', '.join(uses)}")
        elif without:
            log.info("%s means nothing to %s: dropped there", key, ", ".join(without))
    return problems
