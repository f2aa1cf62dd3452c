"""Composes the configs of the runs from command-line overrides."""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from sae_sweep.cli.build import command_config, run_config, to_configs
from sae_sweep.cli.composer import Composed, Composer
from sae_sweep.cli.diagnose import check
from sae_sweep.cli.grids import MOST_RUNS, Grid, Point, read_grids, union
from sae_sweep.cli.groups import groups_of
from sae_sweep.cli.narrow import fits, unmet
from sae_sweep.cli.overrides import Command, read_command
from sae_sweep.cli.reference import References
from sae_sweep.config import (
    ARCHITECTURES,
    SPARSITY_KEYS,
    CommandConfig,
    ConfigError,
    RunConfig,
    digest,
)
from sae_sweep.plan import Request, WantedRun

log = logging.getLogger(__name__)

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
    groups = groups_of(master, loader)
    grids = read_grids(master, functools.partial(check, groups))
    command = read_command(arguments, master, loader, held={key for grid in grids for key in grid.held})
    composer = Composer(master, loader, groups)
    asked = command.swept.size * (sum(grid.size for grid in grids) if grids else 1)
    if asked > MOST_RUNS:
        raise ConfigError([f"the lists and grids multiply to {asked} runs, over {MOST_RUNS}: narrow them"])
    of_grids = union(grids) if grids else [Point({})]
    swept = list(command.swept.points())
    everything = [
        composer.compose(command, Point({**point.values, **typed}, point.grids))
        for point in of_grids
        for typed in swept
    ]
    if problems := unmet(everything, command.wanted):
        raise ConfigError(problems)
    composed = [one for one in everything if fits(one, command.wanted)]
    keys, problems = command_config(composed[0].values)
    runs, wrong = _run_configs(composed, keys)
    problems = [*problems, *wrong] or _unused_sparsity_keys(grids, command, everything, composed)
    if problems or keys is None:
        raise ConfigError(problems)
    references = References(composer, of_grids, {*command.keys})
    wanted = [
        WantedRun(run, references.of(one), one.point.grids) for run, one in zip(runs, composed, strict=True)
    ]
    return Request(keys, wanted, _union_digest(everything, keys) if grids else None, launch)


def _run_configs(
    composed: Sequence[Composed], command: CommandConfig | None
) -> tuple[list[RunConfig], list[str]]:
    """The configs of those runs that have one, and the problems of the others."""
    runs: list[RunConfig] = []
    problems: list[str] = []
    for one in composed:
        try:
            runs.append(run_config(one.values, command))
        except ConfigError as error:
            problems += error.problems
    return runs, problems


def compose_first(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launch: Launch | None = None
) -> Request:
    """Compose a single run from the keys that all runs share; keys that the grids vary keep their defaults.

    Raises:
        ConfigError: all problems of that run.
    """
    command = read_command(arguments, master, loader, held=())
    composer = Composer(master, loader, groups_of(master, loader))
    run, keys = to_configs(composer.compose(command, Point(next(command.swept.points()))).values)
    return Request(keys, [WantedRun(run, run)], launch=launch)


def _union_digest(everything: Sequence[Composed], command: CommandConfig) -> str:
    """Digest of all runs of the grids; the sweep's folder may hold any of them."""
    known = []
    for one in everything:
        with suppress(ConfigError):  # invalid runs were not selected: the selected ones are all valid
            known.append(digest(run_config(one.values, command).weight_keys()))
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
