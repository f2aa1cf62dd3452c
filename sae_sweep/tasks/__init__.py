"""Table of the tasks; each is imported only when it runs."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig, ConfigError


class Task(NamedTuple):
    """An entry of the task table: `task=NAME`."""

    function: str
    """`module:function`, called with the command's Request; it returns the number of failed runs."""
    summary: str
    """Line in `--help`."""
    composes: bool = True
    """Whether the task needs all runs of the command; if not, it works on files of an earlier sweep."""
    resumes: bool = False
    """Whether the same command goes on where it was stopped, rather than begin anew."""
    command: str | None = None
    """`module:class` of a `CommandConfig` with the keys that the task adds to every command."""


TASKS = {
    "train": Task("sae_sweep.tasks.train:train", "train the runs, then compare their SAEs", resumes=True),
    "plan": Task("sae_sweep.tasks.plan:show_plan", "show what would run, and its cost"),
    "cache": Task(
        "sae_sweep.tasks.cache:cache", "compute activations ahead, or look after them (action=)", resumes=True
    ),
    "generate": Task(
        "sae_sweep.tasks.generate:generate",
        "sample the text of dataset=faithful, beside the other datasets",
        resumes=True,
    ),
    "status": Task("sae_sweep.tasks.status:show_status", "show how far a sweep is", composes=False),
    "match": Task("sae_sweep.tasks.match:rematch", "compare the SAEs of a sweep again", composes=False),
    "dashboard": Task(
        "sae_sweep.tasks.dashboard:dashboard", "make a view and a report of a sweep in W&B", composes=False
    ),
    "analyse": Task(
        "sae_sweep.tasks.analyse:analyse", "show what features of SAEs do (sweep= or sae=)", composes=False
    ),
    "transfer": Task(
        "sae_sweep.tasks.transfer:transfer",
        "evaluate every SAE of a sweep on every dataset of it",
        composes=False,
        resumes=True,
    ),
    "diff": Task("sae_sweep.tasks.diff:diff", "compare two datasets through SAEs (dataset=A,B)"),
    "faithful": Task(
        "sae_sweep.tasks.faithful:faithful",
        "measure SFR and FFR of each text's SAEs (sweep=)",
        composes=False,
    ),
    "export": Task(
        "sae_sweep.tasks.export:export", "write features for Neuronpedia or Delphi (format=)", composes=False
    ),
    "publish": Task(
        "sae_sweep.tasks.publish:publish", "upload SAEs to the Hugging Face Hub (to=)", composes=False
    ),
    "report": Task(
        "sae_sweep.study.report:report",
        "write report.html, with the study's tables where the sweep has them",
        composes=False,
        command="sae_sweep.study.config:StudyCommand",
    ),
}


def find(task: str) -> Callable[..., int]:
    """The function of a task. Raises ConfigError, naming the tasks, if there is none of that name."""
    return _load(_entry(task).function)


def composes_runs(task: str, action: str) -> bool:
    """Whether a task needs all runs composed; task=cache does only for `action=fill`."""
    return _entry(task).composes and (task != "cache" or action == "fill")


def resumes(task: str, action: str) -> bool:
    """Whether a task goes on where it was stopped; task=cache does only for `action=fill`."""
    return _entry(task).resumes and (task != "cache" or action == "fill")


def _entry(task: str) -> Task:
    if task not in TASKS:
        raise ConfigError([f"task={task}: not one of {', '.join(TASKS)}"])
    return TASKS[task]


def command_class() -> type[CommandConfig]:
    """`CommandConfig` with the keys that tasks add."""
    names = dict.fromkeys(task.command for task in TASKS.values() if task.command)
    bases = tuple(_load(name) for name in names) or (CommandConfig,)
    return (
        bases[0] if len(bases) == 1 else dataclasses.make_dataclass("Command", [], bases=bases, frozen=True)
    )


def _load(name: str) -> Any:
    """The function or class that `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
