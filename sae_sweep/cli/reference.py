"""What a run's name is compared with: its experiment without the run's own values, or the defaults."""

import copy
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.cli.build import unchecked_run
from sae_sweep.cli.composer import Composed, Composer
from sae_sweep.cli.grids import Point
from sae_sweep.cli.words import quoted
from sae_sweep.config import ConfigError, RunConfig

_GROUPS = ("model", "dataset", "architecture", "numerics", "activations")
"""Groups whose choices are a run's own; a name says what differs from what the choices give."""


class References:
    """Composes the references of the runs of one command, each combination of choices once."""

    def __init__(self, composer: Composer, points: Sequence[Point], typed: Set[str]) -> None:
        """Set the points of the experiment's grids, unless the typed keys replace them."""
        self._composer = composer
        self._fixed = _equal_in_all(points) if typed.isdisjoint(("grids", "common")) else {}
        self._numerics_may_differ = "numerics" in typed or any("numerics" in point.values for point in points)
        self._known: dict[tuple[str, ...], RunConfig] = {}

    def of(self, run: Composed) -> RunConfig:
        """The reference of a run; without its experiment if that is no whole config by itself."""
        chosen = tuple(f"{group}={quoted(run.choices[group])}" for group in _GROUPS)
        experiment = run.choices.get("experiment")
        if experiment is not None:
            with suppress(ConfigError, HydraException, OmegaConfBaseException):
                return self._composed(chosen, (f"experiment={quoted(experiment)}",))
        return self._composed(chosen, ())

    def _composed(self, chosen: tuple[str, ...], experiment: tuple[str, ...]) -> RunConfig:
        key = (*experiment, *chosen)
        if key not in self._known:
            values = copy.deepcopy(self._composer.load(key)[0])
            if experiment or self._numerics_may_differ:
                values.numerics = self._composer.load(experiment)[0].numerics
            if experiment:
                self._fix(values)
            self._known[key] = unchecked_run(values)
        return self._known[key]

    def _fix(self, values: DictConfig) -> None:
        for key, value in self._fixed.items():
            if key == "numerics" or not self._composer.is_group(key):
                with suppress(OmegaConfBaseException):  # another architecture's key
                    OmegaConf.update(values, key, value)


def _equal_in_all(points: Sequence[Point]) -> Mapping[str, Any]:
    """Keys that have the same value in all points: fixed, as if they stood above the grids."""
    return {
        key: value
        for key, value in points[0].values.items()
        if all(key in point.values and point.values[key] == value for point in points)
    }
