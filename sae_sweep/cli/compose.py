"""From command-line overrides to the configs of the runs."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from sae_sweep.cli.composer import Composed, Composer
from sae_sweep.cli.diagnose import check
from sae_sweep.cli.grids import Grid, Point, read_grids, union
from sae_sweep.cli.narrow import SPARSITY_KEYS, narrow
from sae_sweep.cli.overrides import Command, read_command
from sae_sweep.cli.schema import conf_folder
from sae_sweep.config import ARCHITECTURES, Config, ConfigError, digest
from sae_sweep.config.checks import one_of

log = logging.getLogger(__name__)

REFERENCE_GROUPS = ("model", "dataset", "architecture", "numerics", "activations")
"""Choices whose own defaults a run's name is compared with."""
REQUIRED = {"dataset=files": "dataset.path=given"}
"""What a choice needs before its defaults make a valid config."""
BUDGETS = ("equal", "published")
PUBLISHED_TOKENS = 1_000_000_000
"""What the study's checkpoint names imply for OpenWebText."""


class ComposedRun(NamedTuple):
    """One run of the command; two of them may turn out to be the same."""

    config: Config
    reference: Config
    """The defaults that its name is compared with."""
    grids: tuple[str, ...]
    """Names of the grids that ask for it."""
    union: str | None
    """Names the whole union of grids that the command selects from; None where there are no grids."""


def compose(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> list[ComposedRun]:
    """Every run of the command, in the order the grids and comma lists have them.

    Comma lists multiply. With grids, a value for a key that a grid holds selects among their runs; every
    other key is set in all of them.

    Raises:
        ConfigError: all problems of all runs at once.
    """
    grids = read_grids(master, partial(check, conf=conf_folder()))
    command = read_command(arguments, loader, held={key for grid in grids for key in grid.held})
    composer = Composer(master, loader, command.plain)
    points = [
        Point({**point.values, **typed}, point.grids)
        for point in (union(grids) if grids else [Point({})])
        for typed in command.swept_points()
    ]
    everything = [composer.compose(point) for point in points]
    composed = narrow(everything, command.wanted)
    configs, problems = _typed(composed)
    problems = problems or _meaningless(grids, command, everything, composed)
    if problems:
        raise ConfigError(problems)
    references = _References(composer)
    whole = _name_of_all(everything) if grids else None
    return [
        ComposedRun(config, references.of(one), one.point.grids, whole)
        for config, one in zip(configs, composed, strict=True)
    ]


def compose_first(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader) -> Config:
    """One run alone, with what all runs of the command share; what the grids vary stays at its default.

    Raises:
        ConfigError: all problems of that run.
    """
    command = read_command(arguments, loader, held=())
    first = next(command.swept_points())
    return to_config(Composer(master, loader, command.plain).compose(Point(first)).values)


def _name_of_all(everything: Sequence[Composed]) -> str:
    """Of all runs that the grids hold, by what determines their weights; a folder may hold any of them."""
    known = []
    for one in everything:
        with suppress(ConfigError):  # narrowed away: those that stay are all valid
            known.append(digest(to_config(one.values).identity()))
    return digest(sorted(set(known)))


def _typed(composed: Sequence[Composed]) -> tuple[list[Config], list[str]]:
    configs: list[Config] = []
    problems: list[str] = []
    for one in composed:
        try:
            configs.append(to_config(one.values))
        except ConfigError as error:
            problems += error.problems
    return configs, problems


def to_config(composed: DictConfig) -> Config:
    """The typed config of one run; keys without meaning for its architecture become null.

    Raises:
        ConfigError: all problems of the run.
    """
    problems: list[str] = []
    one_of(problems, "budget", composed.budget, BUDGETS)
    own = OmegaConf.masked_copy(composed, [field.name for field in dataclasses.fields(Config)])
    parts: Any = OmegaConf.to_object(own)
    uses = parts["architecture"].uses
    unused = {key: None for key in SPARSITY_KEYS if key not in uses}
    if composed.budget == "published":
        parts["tokens"] = _published_tokens(parts)
    try:
        config = Config(**{**parts, **unused})
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def _published_tokens(parts: Mapping[str, Any]) -> int:
    stands_for_owt = parts["study"].datasets.get("owt", "owt")
    return PUBLISHED_TOKENS if parts["dataset"].name == stands_for_owt else parts["tokens"]


class _References:
    """The defaults of each combination of choices, composed once."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._known: dict[tuple[str, ...], Config] = {}

    def of(self, run: Composed) -> Config:
        choices = tuple(f"{group}={run.choices[group]}" for group in REFERENCE_GROUPS)
        if choices not in self._known:
            required = [REQUIRED[choice] for choice in choices if choice in REQUIRED]
            self._known[choices] = to_config(self._composer.load([*choices, *required]))
        return self._known[choices]


def _meaningless(
    grids: Sequence[Grid], command: Command, everything: Sequence[Composed], kept: Sequence[Composed]
) -> list[str]:
    """Sparsity keys that were given but mean nothing to any run; those that do to some are said once."""
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
