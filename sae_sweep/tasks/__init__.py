"""Table of the tasks; each is imported only when it runs."""

import importlib
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig


class Task(NamedTuple):
    """An entry of the task table: `task=NAME`."""

    function: str
    """`module:function`, called with the command's Request; it returns the number of failed runs."""
    summary: str
    """Line in `--help`."""
    composes: bool = True
    """Whether the task needs all runs of the command; if not, it works on files of an earlier sweep."""
    command: str = "sae_sweep.config:CommandConfig"
    """`module:class` of the keys that the task adds to every command."""


TASKS = {
    "train": Task("sae_sweep.tasks.train:train", "train the runs, then compare their SAEs"),
    "plan": Task("sae_sweep.tasks.plan:show_plan", "show what would run, and its cost"),
    "cache": Task("sae_sweep.tasks.cache:cache", "compute activations ahead, or look after them (action=)"),
    "status": Task("sae_sweep.tasks.status:show_status", "show how far a sweep is", composes=False),
    "match": Task("sae_sweep.tasks.match:rematch", "compare the SAEs of a sweep again", composes=False),
    "report": Task(
        "sae_sweep.study.report:report",
        "write the study's tables",
        False,
        "sae_sweep.study.config:StudyCommand",
    ),
}


def composes_runs(task: str, action: str) -> bool:
    """Whether a task needs all runs composed; task=cache does only for `action=fill`."""
    return TASKS[task].composes and (task != "cache" or action == "fill")


def command_class() -> type[CommandConfig]:
    """`CommandConfig` with the keys that tasks add."""
    bases = [load(name) for name in dict.fromkeys(task.command for task in TASKS.values())]
    own = tuple(base for base in bases if base is not CommandConfig) or (CommandConfig,)
    return own[0] if len(own) == 1 else type("Command", own, {})


def load(name: str) -> Any:
    """The function or class that `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
