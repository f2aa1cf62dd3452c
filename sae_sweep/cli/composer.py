"""Composing many runs at the price of a few: Hydra once for each combination of group choices."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.cli.grids import Point
from sae_sweep.cli.schema import Schema, conf_folder
from sae_sweep.config import ConfigError


class Composed(NamedTuple):
    """One run before it is checked as a whole."""

    point: Point
    values: DictConfig
    """The keys of `Schema`."""
    choices: Mapping[str, str]
    """Group -> choice."""


class Composer:
    """Composes the runs of one command.

    Only group choices decide which files make up a config, so the runs that agree on them start from one
    composition by Hydra, and each sets its values in a copy of it.
    """

    def __init__(self, master: DictConfig, loader: ConfigLoader, plain: Sequence[str]) -> None:
        self._master = master
        self._loader = loader
        self._plain = tuple(plain)
        self._known: dict[tuple[str, ...], tuple[DictConfig, Mapping[str, str]]] = {}

    def load(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra itself composes from the overrides."""
        # not load_sweep_config: it would overwrite the run's own group choices with the master's
        return self._loader.load_configuration(
            config_name=self._master.hydra.job.config_name,
            overrides=[*self._master.hydra.overrides.hydra, *overrides],
            run_mode=RunMode.RUN,
        )

    def compose(self, point: Point) -> Composed:
        """One run: the command's plain overrides and the values of the point.

        Raises:
            ConfigError: naming the grids that ask for a value that cannot be set.
        """
        groups = [f"{key}={value}" for key, value in point.values.items() if _is_group(key)]
        where = f"{', '.join(point.grids)}: " if point.grids else ""
        try:
            base, choices = self._base(tuple(groups))
            values = copy.deepcopy(base)
            for key, value in point.values.items():
                if not _is_group(key):
                    OmegaConf.update(values, key, value)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([where + str(error).splitlines()[0]]) from error
        return Composed(point, values, choices)

    def _base(self, groups: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, str]]:
        if groups not in self._known:
            whole = self.load([*self._plain, *groups])
            own = OmegaConf.masked_copy(whole, [field.name for field in dataclasses.fields(Schema)])
            self._known[groups] = own, dict(whole.hydra.runtime.choices)
        return self._known[groups]


def _is_group(key: str) -> bool:
    return (conf_folder() / key).is_dir()
