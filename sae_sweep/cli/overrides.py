"""Parses the overrides of a command: values for all runs, comma lists, and selections from the grids."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString

from sae_sweep.cli.grids import NOT_SWEPT, two_spellings
from sae_sweep.config import ConfigError, short_key


@dataclass(frozen=True)
class Command:
    """The overrides of a command line, by their effect."""

    unswept: Sequence[str]
    """Overrides that apply to every run, as typed."""
    swept: Mapping[str, Sequence[Any]]
    """Key -> values of a comma list; these multiply."""
    wanted: Mapping[str, Sequence[Any]]
    """Key of a grid -> values; only runs with one of these values are selected."""
    keys: Collection[str]
    """Every key that was typed."""

    def swept_points(self) -> Iterator[dict[str, Any]]:
        """Yield each combination of the comma lists as key -> value; without lists, one empty mapping."""
        for values in itertools.product(*self.swept.values()):
            yield dict(zip(self.swept, values, strict=True))


def read_command(arguments: Sequence[str], loader: ConfigLoader, held: Collection[str]) -> Command:
    """Parse the overrides and sort them by effect.

    Args:
        arguments: as typed, for example `["seed=42,49", "dataset=owt"]`.
        loader: knows the choices of the groups, for `dataset=glob(*)`.
        held: keys of the grids.

    Raises:
        ConfigError: for sweeps other than comma lists, and for keys that cannot be swept.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    problems = [problem for override in overrides if (problem := _unsweepable(override))]
    problems += two_spellings(override.key_or_group for override in overrides)
    if problems:
        raise ConfigError(problems)
    keys = [short_key(override.key_or_group) for override in overrides]
    values = {key: _values(override) for key, override in zip(keys, overrides, strict=True)}
    swept = {key for key, override in zip(keys, overrides, strict=True) if override.is_sweep_override()}
    lists = swept - set(held)
    return Command(
        unswept=[
            _text(key, override)
            for key, override in zip(keys, overrides, strict=True)
            if key not in lists and key not in held
        ],
        swept={key: values[key] for key in values if key in lists},
        wanted={key: values[key] for key in values if key in held},
        keys=frozenset(keys),
    )


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


def _values(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    return [value.text if isinstance(value, QuotedString) else value for value in override.sweep_iterator()]
