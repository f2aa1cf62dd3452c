"""Composes many runs quickly: Hydra composes once per combination of group choices."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.cli.explain import explained
from sae_sweep.cli.grids import Point
from sae_sweep.cli.groups import Groups
from sae_sweep.cli.overrides import Command
from sae_sweep.cli.schema import Schema
from sae_sweep.cli.words import quoted
from sae_sweep.config import ARCHITECTURES, ConfigError, MixDataset
from sae_sweep.config.mixture import MIXTURE, mixture_label


class Composed(NamedTuple):
    """A composed run, not yet validated as a whole."""

    point: Point
    values: DictConfig
    """The keys of `Schema`."""
    choices: Mapping[str, str]
    """Group -> choice."""


class Composer:
    """Composes the runs of one command.

    Only group choices decide which files make up a config. Runs with the same choices therefore share one
    composition by Hydra, and each sets its values in a copy.
    """

    def __init__(self, master: DictConfig, loader: ConfigLoader, groups: Groups) -> None:
        self._master = master
        self._loader = loader
        self._groups = groups
        self._known: dict[tuple[str, ...], tuple[DictConfig, Mapping[str, str]]] = {}

    def is_group(self, key: str) -> bool:
        """Whether a key is a config group, whose choice decides which file is part of a config."""
        return bool(self._groups.choices(key))

    def load(self, overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, str]]:
        """Compose the keys of `Schema` from overrides with Hydra; also returns the choice of each group."""
        key = tuple(overrides)
        if key not in self._known:
            # not load_sweep_config: it would overwrite the run's own group choices with the master's
            whole = self._loader.load_configuration(
                config_name=self._master.hydra.job.config_name,
                overrides=[*self._master.hydra.overrides.hydra, *overrides],
                run_mode=RunMode.RUN,
            )
            own = OmegaConf.masked_copy(whole, [field.name for field in dataclasses.fields(Schema)])
            self._known[key] = own, dict(whole.hydra.runtime.choices)
        return self._known[key]

    def compose(self, command: Command, point: Point) -> Composed:
        """Compose one run from the command's unswept overrides and the values of the point.

        Raises:
            ConfigError: naming the grids that ask for a value that cannot be set.
        """
        groups = [f"{key}={quoted(str(value))}" for key, value in point.values.items() if self.is_group(key)]
        where = f"{', '.join(point.grids)}: " if point.grids else ""
        try:
            base, chosen = self.load([*command.unswept, *groups])
            values = copy.deepcopy(base)
            for key, value in point.values.items():
                if not self.is_group(key):
                    OmegaConf.update(values, key, value)
            name_experiment(values, chosen.get("experiment"))
            _set_sparsity(values, chosen["architecture"], {*command.keys, *point.values})
            self._set_mixture(values)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([where + explained(error)]) from error
        return Composed(point, values, chosen)

    def _set_mixture(self, values: DictConfig) -> None:
        """Set the datasets that the weights of a mixture name, and its label if it has none."""
        if OmegaConf.get_type(values.dataset) is not MixDataset:
            return
        mixture = values.dataset
        if mixture.parts:
            raise ConfigError(["dataset.parts: give the names of the datasets in dataset.weights"])
        if unknown := [name for name in mixture.weights if not self._groups.has("dataset", str(name))]:
            known = ", ".join(self._groups.choices("dataset"))
            raise ConfigError([f"dataset.weights.{name}: not one of {known}" for name in unknown])
        for name in mixture.weights:
            mixture.parts[name] = self.load([f"dataset={quoted(str(name))}"])[0].dataset
        if mixture.name == MIXTURE and mixture.weights:
            mixture.name = mixture_label(mixture.weights)


def name_experiment(values: DictConfig, choice: str | None) -> None:
    """Name the experiment for its file, unless the file was inherited from one that says its name."""
    if OmegaConf.is_config(values.experiment):
        raise ConfigError([f"experiment={choice}: its file must begin with the line `# @package _global_`"])
    if choice is not None:
        values.experiment = choice.replace("/", "-")


def _set_sparsity(values: DictConfig, architecture: str, given: set[str]) -> None:
    """Copy given sparsity keys to the architecture: `k=32` overrides an experiment's `architecture.k`."""
    for key in given & set(ARCHITECTURES[architecture].uses):
        OmegaConf.update(values, f"architecture.{key}", values[key])
