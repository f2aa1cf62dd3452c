"""Parses the overrides of a command: values for all runs, comma lists, and selections from the grids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sae_sweep.cli.grids import NOT_SWEPT, Grid, two_spellings, zip_lists
from sae_sweep.cli.words import values_of
from sae_sweep.config import ConfigError, short_key


@dataclass(frozen=True)
class Command:
    """The overrides of a command line, by their effect."""

    unswept: Sequence[str]
    """Overrides that apply to every run, as typed."""
    swept: Grid
    """Keys with comma lists; these multiply, or advance together where `zip` says so."""
    wanted: Mapping[str, Sequence[Any]]
    """Key of a grid -> values; only runs with one of these values are selected."""
    keys: Collection[str]
    """Every key that was typed."""


def read_command(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, held: Collection[str]
) -> Command:
    """Parse the overrides and sort them by effect.

    Args:
        arguments: as typed, for example `["seed=42,49", "dataset=owt"]`.
        master: the composed command, for its `zip`.
        loader: knows the choices of the groups, for `dataset=glob(*)`.
        held: keys of the grids.

    Raises:
        ConfigError: for sweeps other than comma lists, for keys that cannot be swept, and for a wrong `zip`.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    problems = [problem for override in overrides if (problem := _unsweepable(override))]
    problems += two_spellings(override.key_or_group for override in overrides)
    if problems:
        raise ConfigError(problems)
    keys = [short_key(override.key_or_group) for override in overrides]
    values = {key: values_of(override) for key, override in zip(keys, overrides, strict=True)}
    swept = {key for key, override in zip(keys, overrides, strict=True) if override.is_sweep_override()}
    lists = swept - set(held)
    return Command(
        unswept=[
            _text(key, override)
            for key, override in zip(keys, overrides, strict=True)
            if key not in lists and key not in held
        ],
        swept=zip_lists({key: values[key] for key in values if key in lists}, _zip(master, held)),
        wanted={key: values[key] for key in values if key in held},
        keys=frozenset(keys),
    )


def _zip(master: DictConfig, held: Collection[str]) -> list[Any]:
    """The value of `zip`; refuses keys of the grids, whose lists select among the runs."""
    raw: Any = OmegaConf.to_container(master.zip, resolve=True)
    flat = [key for one in raw for key in (one if isinstance(one, list) else [one])]
    if selecting := [key for key in flat if short_key(str(key)) in held]:
        raise ConfigError(
            f"zip: the grids have {key}, and a list of it selects among their runs" for key in selecting
        )
    return raw


def _text(key: str, override: Override) -> str:
    if key == override.key_or_group and override.input_line:
        return override.input_line
    element = override.get_key_element().replace(override.key_or_group, key)
    return f"{element}={override.get_value_element_as_str()}"


def _unsweepable(override: Override) -> str | None:
    if not override.is_sweep_override():
        return None
    if override.key_or_group.split(".")[0] in NOT_SWEPT:
        return f"{override.key_or_group} cannot be swept: it belongs to the sweep as a whole"
    if not override.is_discrete_sweep():
        return f"{override.input_line}: give the values as a comma list"
    return None
