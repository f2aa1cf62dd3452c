"""Runs of a sweep in the study's terms, and the choice of the two runs that fill a cell."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from sae_sweep.study.published import RunFacts


@dataclass(frozen=True, eq=False)
class StudyRun:
    """A trained SAE; its weights are read on demand, since those of a sweep do not fit in memory."""

    name: str
    """Unique in its sweep."""
    architecture: str
    """topk, batchtopk, jumprelu, ..."""
    dictionary: int
    """Expansion factor."""
    k: int | None
    l0_coefficient: float | None
    """At the study's scale: the run's coefficient divided by `study.l0_scale`."""
    dataset: str
    """The study's dataset it stands in for (owt, tinystories, redpajama, pile), else its own name."""
    layer: int
    seed: int
    init_shared: bool
    """Whether runs of equal seed and size start from the same dictionary."""
    tokens: int
    """SAE inputs it was trained on."""
    init_match: float
    """Share of features that still match its own initial dictionary."""
    decoder: Callable[[], Float[Tensor, "n d_in"]]
    """Reads `W_dec`."""
    densities: Callable[[], Float[Tensor, " n"] | None] = field(default=lambda: None)
    """Reads the share of held-out tokens on which each feature fires; None if it was not evaluated."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """All other keys that determine its weights (model, numerics, learning rate, ...): flat key -> value."""
    explained_variance: float | None = None
    """On held-out text, in SAE-input space; None if it was not evaluated."""
    mixed: bool = False
    """Whether part of it was trained with other numerics."""

    def fits(self, facts: RunFacts) -> bool:
        """Whether this run stands in for the given SAE of the study."""
        sparsity = self.l0_coefficient if facts.architecture == "jumprelu" else self.k
        return (
            (self.architecture, self.dictionary, self.dataset, self.layer, self.seed)
            == (facts.architecture, facts.dictionary, facts.dataset, facts.layer, facts.seed)
            and sparsity is not None
            and math.isclose(sparsity, facts.sparsity, rel_tol=1e-6)
        )

    @functools.cached_property
    def keys(self) -> Mapping[str, Any]:
        """All keys that determine its weights: flat key -> value."""
        own = ("architecture", "dictionary", "k", "l0_coefficient", "dataset", "layer", "seed", "tokens")
        return {
            **{name: getattr(self, name) for name in own},
            "init.shared": self.init_shared,
            **self.rest,
        }

    def apart_from(self, varied: Collection[str]) -> str:
        """All keys that determine its weights except `varied`, as text: equal for runs that agree in them."""
        kept = {key: value for key, value in self.keys.items() if not _is_of(key, varied)}
        return json.dumps(kept, sort_keys=True, default=str)


def differing(a: StudyRun, b: StudyRun, varied: Collection[str] = ()) -> tuple[str, ...]:
    """Keys in which two runs differ, except those in `varied`; `dataset` there covers `dataset.*`."""
    return tuple(
        key
        for key in dict.fromkeys((*a.keys, *b.keys))
        if a.keys.get(key) != b.keys.get(key) and not _is_of(key, varied)
    )


def _is_of(key: str, varied: Collection[str]) -> bool:
    return key in varied or key.split(".")[0] in varied


class CellRuns(NamedTuple):
    """The two runs that fill a cell."""

    counted: StudyRun | None
    """None if no run fits."""
    sought_in: StudyRun | None
    differs: tuple[str, ...]
    """Differences beyond what the cell varies, such as `tokens 100,000 / 200,000`."""


class RunFinder:
    """Finds the runs that fill a cell, and records where several fit."""

    def __init__(self, runs: Sequence[StudyRun]) -> None:
        self._runs = runs
        self._order = {run: index for index, run in enumerate(runs)}
        self._chosen: dict[RunFacts, dict[StudyRun, None]] = {}

    def pair(self, counted: RunFacts, sought_in: RunFacts) -> CellRuns:
        """The first two runs, in the sweep's order, that fit and differ only in what the cell varies.

        If all pairs differ in more, the first pair. The choice does not depend on which side is counted.
        """
        ours, theirs = self._fitting(counted), self._fitting(sought_in)
        if not ours or not theirs:
            return CellRuns(ours[0] if ours else None, theirs[0] if theirs else None, ())
        a, b, differs = self._choose(ours, theirs, _varied(counted, sought_in))
        self._chosen.setdefault(counted, {})[a] = None
        self._chosen.setdefault(sought_in, {})[b] = None
        return CellRuns(a, b, differs)

    def _choose(
        self, ours: Sequence[StudyRun], theirs: Sequence[StudyRun], varied: Collection[str]
    ) -> tuple[StudyRun, StudyRun, tuple[str, ...]]:
        def order(pair: tuple[StudyRun, StudyRun]) -> tuple[bool, list[int]]:
            a, b = pair
            return bool(differing(a, b, varied)), sorted((self._order[a], self._order[b]))

        a, b = min(itertools.product(ours, theirs), key=order)
        return a, b, tuple(_both(key, a, b) for key in differing(a, b, varied))

    def _fitting(self, facts: RunFacts) -> list[StudyRun]:
        return [run for run in self._runs if run.fits(facts)]

    @property
    def notes(self) -> tuple[str, ...]:
        """One line per SAE of the study that several runs fit."""
        lines = []
        for facts, chosen in self._chosen.items():
            fitting = self._fitting(facts)
            if len(fitting) == 1:
                continue
            names = " and ".join(run.name for run in chosen)
            were = "was chosen" if len(chosen) == 1 else "were chosen, each for some of its cells"
            left = ", ".join(run.name for run in fitting if run not in chosen)
            lines.append(f"several runs fit {facts}: {names} {were}" + (f", not {left}" if left else ""))
        return tuple(lines)


def _varied(a: RunFacts, b: RunFacts) -> set[str]:
    """The keys of a run that differ between the two SAEs of a cell."""
    names = {part.name for part in dataclasses.fields(RunFacts)}
    varied = {name for name in names if getattr(a, name) != getattr(b, name)}
    return varied | {"k", "l0_coefficient"} if varied & {"architecture", "sparsity"} else varied


def _both(key: str, a: StudyRun, b: StudyRun) -> str:
    return f"{key} {_text(a.keys.get(key))} / {_text(b.keys.get(key))}"


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
