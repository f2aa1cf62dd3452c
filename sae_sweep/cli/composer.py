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
from sae_sweep.config import ARCHITECTURES, ConfigError, DomainDataset, MixDataset
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
            self._set_sources(values.dataset)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([where + explained(error)]) from error
        return Composed(point, values, chosen)

    def _set_sources(self, dataset: DictConfig) -> None:
        """Set the datasets of which a mixture or a domain is made, and a mixture's label if it has none.

        Raises:
            ConfigError: if there is no such dataset, or they are given in another way than by name.
        """
        kind = OmegaConf.get_type(dataset)
        if kind is MixDataset:
            if dataset.parts:
                raise ConfigError(["dataset.parts: give the names of the datasets in dataset.weights"])
            dataset.parts.update(
                self._named({f"dataset.weights.{name}": str(name) for name in dataset.weights})
            )
            if dataset.name == MIXTURE and dataset.weights:
                dataset.name = mixture_label(dataset.weights)
            for part in dataset.parts.values():
                if OmegaConf.get_type(part) is DomainDataset:
                    self._set_sources(part)
        elif kind is DomainDataset and dataset.of:
            if dataset.source is not None:
                raise ConfigError(["dataset.source: give the name of the dataset as dataset.of"])
            dataset.source = self._named({f"dataset.of={dataset.of}": dataset.of})[dataset.of]

    def _named(self, names: Mapping[str, str]) -> dict[str, DictConfig]:
        """The datasets of some names, which are given by the key that asks for them."""
        known = ", ".join(self._groups.choices("dataset"))
        if unknown := [key for key, name in names.items() if not self._groups.has("dataset", name)]:
            raise ConfigError([f"{key}: not one of {known}" for key in unknown])
        return {name: self.load([f"dataset={quoted(name)}"])[0].dataset for name in names.values()}


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
