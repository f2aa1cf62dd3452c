"""The runs of a sweep in the study's terms, and which of them a cell needs."""

import functools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.study.published import RunFacts


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One trained SAE. Its weights are read when they are needed: a sweep of them does not fit in memory."""

    name: str
    """Unique in its sweep."""
    architecture: str
    """topk, batchtopk, jumprelu, ..."""
    dictionary: int
    """Expansion factor."""
    k: int | None
    l0_coefficient: float | None
    """At the study's scale: the sweep's own divided by what it multiplies the study's with."""
    dataset: str
    """The study's dataset that it stands for: owt, tinystories, redpajama, pile; else its own name."""
    layer: int
    seed: int
    init_shared: bool
    """Whether runs of equal seed and size started from one dictionary."""
    tokens: int
    """SAE inputs it was trained on."""
    init_match: float
    """Share of features that still match its own initial dictionary."""
    decoder: Callable[[], Float[Tensor, "n d_in"]]
    """Reads `W_dec`."""
    densities: Callable[[], Float[Tensor, " n"] | None] = field(default=lambda: None)
    """Reads the share of held-out tokens on which each feature fires; None if it was not evaluated."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else determines its weights (model, numerics, learning rate, ...): flat key -> value."""
    explained_variance: float | None = None
    """On held-out text, in SAE-input space; None if it was not evaluated."""

    def fits(self, facts: RunFacts) -> bool:
        """Whether it is the SAE that a cell of the study asks for."""
        sparsity = self.l0_coefficient if facts.architecture == "jumprelu" else self.k
        return (
            (self.architecture, self.dictionary, self.dataset, self.layer, self.seed)
            == (facts.architecture, facts.dictionary, facts.dataset, facts.layer, facts.seed)
            and sparsity is not None
            and math.isclose(sparsity, facts.sparsity, rel_tol=1e-6)
        )

    @functools.cached_property
    def keys(self) -> Mapping[str, Any]:
        """All that determines its weights: flat key -> value."""
        own = ("architecture", "dictionary", "k", "l0_coefficient", "dataset", "layer", "seed", "tokens")
        return {
            **{name: getattr(self, name) for name in own},
            "init.shared": self.init_shared,
            **self.rest,
        }

    def apart_from(self, varied: Collection[str]) -> str:
        """What determines its weights beside `varied`, as one text: equal for runs that agree in it."""
        kept = {key: value for key, value in self.keys.items() if not _is_of(key, varied)}
        return json.dumps(kept, sort_keys=True, default=str)


def differing(a: StudyRun, b: StudyRun, varied: Collection[str] = ()) -> tuple[str, ...]:
    """Keys in which two runs differ; not those in `varied`, where `dataset` stands for `dataset.*` too."""
    return tuple(
        key
        for key in dict.fromkeys((*a.keys, *b.keys))
        if a.keys.get(key) != b.keys.get(key) and not _is_of(key, varied)
    )


def _is_of(key: str, varied: Collection[str]) -> bool:
    return key in varied or key.split(".")[0] in varied


class RunFinder:
    """Looks runs up by what a cell asks for, and remembers where it had to choose."""

    def __init__(self, runs: Sequence[StudyRun]) -> None:
        self._runs = runs
        self._notes: dict[str, None] = {}

    def find(self, facts: RunFacts) -> StudyRun | None:
        """The first run, in the sweep's order, that fits; None if there is none."""
        fitting = [run for run in self._runs if run.fits(facts)]
        if len(fitting) > 1:
            others = ", ".join(run.name for run in fitting[1:])
            self._notes[f"several runs are {facts}: {fitting[0].name} was taken, not {others}"] = None
        return fitting[0] if fitting else None

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each SAE of the study that several runs stand for."""
        return tuple(self._notes)
