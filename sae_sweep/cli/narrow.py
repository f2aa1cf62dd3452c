"""Selects runs of the grids by the values that the command line gives for their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_sweep.cli.composer import Composed
from sae_sweep.cli.grids import same
from sae_sweep.config import ARCHITECTURES, SPARSITY_KEYS

UNUSED = object()
"""Value of a sparsity key in a run that does not use it: no given value matches."""


def unmet(runs: Sequence[Composed], wanted: Mapping[str, Sequence[Any]]) -> list[str]:
    """One problem per wanted value that no run has, or one if no run has the combination."""
    problems = [problem for key, values in wanted.items() for problem in _absent(runs, key, values)]
    if not problems and not any(fits(run, wanted) for run in runs):
        asked = ", ".join(f"{key}={','.join(map(str, values))}" for key, values in wanted.items())
        problems.append(f"no run of the grids has this combination: {asked}")
    return problems


def fits(run: Composed, wanted: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a run has a wanted value for every key, defaults included."""
    return all(any(same(value_of(run, key), one) for one in values) for key, values in wanted.items())


def _absent(runs: Sequence[Composed], key: str, values: Sequence[Any]) -> list[str]:
    held = {str(value): value for run in runs if (value := value_of(run, key)) is not UNUSED}
    missing = [value for value in values if not any(same(value, one) for one in held.values())]
    listed = ", ".join(map(str, _sorted(list(held.values()))))
    instead = f"they have {listed}" if held else f"{key} means nothing to them"
    return [f"{key}={value}: no run of the grids has it; {instead}" for value in missing]


def _sorted(values: list[Any]) -> list[Any]:
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else values


def value_of(run: Composed, key: str) -> Any:
    """Value of a key, or the choice of a group, in a run; UNUSED if the run does not use the key."""
    if key in run.choices:
        return run.choices[key]
    if key in SPARSITY_KEYS:
        if key not in ARCHITECTURES[run.choices["architecture"]].uses:
            return UNUSED
        key = f"architecture.{key}"
    return OmegaConf.select(run.values, key, default=UNUSED)
