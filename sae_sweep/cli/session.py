"""What one command has in hand: the work to do, and how it went.

Hydra swallows the results of its launchers and the exceptions of its callbacks, so they are kept here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_sweep.config import Config, needs_plan
from sae_sweep.plan.plan import Plan


@dataclass
class Session:
    """One command."""

    execute: Callable[[Plan], int]
    """Carries out the plan; returns how many runs failed."""
    answer: Callable[[Config], int]
    """Carries out a task that is about a sweep on disk; returns how many runs failed."""
    compare: Callable[[Plan], None]
    """Compares the finished runs of the plan."""
    fingerprints: Callable[[Config], Mapping[str, str]]
    """Of the text and the LM that a config reads."""
    hand_over: Callable[[Plan, Callable[[list[list[str]]], Any]], int] | None = None
    """Lets a launcher other than ours train the plan; returns how many runs failed."""
    composing: bool = True
    """Until the configs stand, every exception is a config error."""
    plan: Plan | None = None
    failed: int = 0
    errors: list[BaseException] = field(default_factory=list)
    """Raised inside callbacks, where Hydra would turn them into warnings."""


_current: list[Session] = []


def begin(session: Session) -> None:
    """Make `session` the one that the plugins work for."""
    _current[:] = [session]


def begun() -> bool:
    """Whether this process has a session: the jobs of launchers other than ours begin without."""
    return bool(_current)


def current() -> Session:
    """The session of this command."""
    return _current[0]


def single(config: Any) -> None:
    """Hydra's task function, called for one run without a sweep (`hydra.mode=RUN`)."""
    from sae_sweep.cli.compose import to_config
    from sae_sweep.plan.plan import make_plan

    session = current()
    run = to_config(config)
    session.composing = False
    if not needs_plan(run.task, run.action):
        session.failed += session.answer(run)
        return
    plan = make_plan([run], [run], session.fingerprints)
    session.failed += session.execute(plan)
