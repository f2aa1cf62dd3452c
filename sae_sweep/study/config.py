"""The keys that the study adds to a command."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.config import CommandConfig, plain_name
from sae_sweep.config.checks import number_problems, one_of, positive

DATASETS = ("owt", "tinystories", "redpajama", "pile")
BUDGETS = ("equal", "published")
PUBLISHED_TOKENS = 1_000_000_000
"""Budget on OpenWebText that the names of the study's checkpoints imply."""


@dataclass(frozen=True)
class StudyConfig:
    """What stands in for the study's data in a sweep that `task=report` compares with the study."""

    datasets: dict[str, str] = field(default_factory=dict)
    """The study's dataset (owt, tinystories, redpajama, pile) -> its stand-in; others are read themselves."""
    l0_scale: float = positive(1.0)
    """Factor on the study's JumpReLU coefficients in this sweep."""
    paper: str = "paper"
    """Sweep whose answers the report of a controlled sweep shows beside its own."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "study.").values())
        unknown = set(self.datasets) - set(DATASETS)
        if unknown:
            found.append(f"study.datasets: {', '.join(sorted(unknown))} is not one of {', '.join(DATASETS)}")
        plain_name(found, "study.paper", self.paper)
        return found


@dataclass(frozen=True)
class StudyCommand(CommandConfig):
    """A command with the study's keys."""

    study: StudyConfig = field(default_factory=StudyConfig)
    budget: str = "equal"
    """equal: `tokens` for every run. published: what the study's checkpoints imply, 10^9 tokens on
    OpenWebText or its stand-in, and `tokens` elsewhere."""

    def problems(self) -> list[str]:
        found = super().problems()
        one_of(found, "budget", self.budget, BUDGETS)
        return found

    def changes(self, dataset: str) -> dict[str, Any]:
        on_owt = dataset == self.study.datasets.get("owt", "owt")
        published = {"tokens": PUBLISHED_TOKENS} if self.budget == "published" and on_owt else {}
        return {**super().changes(dataset), **published}

    def kept(self) -> dict[str, Any]:
        return {**super().kept(), "study": dataclasses.asdict(self.study)}
