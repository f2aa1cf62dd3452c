"""Launchers other than ours (`hydra/launcher=submitit_slurm`, ...): each job is one frozen group of runs.

Such a launcher calls Hydra's task function for every list of overrides it is given, often in a process of its
own in which no command line has set anything up.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_sweep import logs
from sae_sweep.cli import session as sessions
from sae_sweep.cli.session import Session
from sae_sweep.launch.jobs import freeze_group
from sae_sweep.plan.plan import Plan
from sae_sweep.tasks import answer, compare, execute, fingerprints

log = logging.getLogger(__name__)

_KEY = "job"
"""Added to the config of a job; not a key of ours, so a command cannot set it."""


def task_function(config: Any) -> None:
    """Hydra's task function: trains the frozen group that `config.job` names, or the run of `config`."""
    if not sessions.begun():
        logs.log_to_terminal()
        sessions.begin(Session(execute=execute, answer=answer, compare=compare, fingerprints=fingerprints))
    job = config.get(_KEY)
    if job is None:
        sessions.single(config)
        return
    from sae_sweep.launch.job import run_job

    run_job(Path(job.folder), int(job.number))


def hand_over(plan: Plan, launch: Callable[[list[list[str]]], Any]) -> int:
    """Freeze the groups, let a foreign launcher train them, and see how that went.

    Args:
        launch: given one list of overrides a job; returns when all jobs have ended.

    Returns:
        How many runs failed.

    Raises:
        SaeSweepError: if a folder is held or holds another run.
    """
    from sae_sweep.launch.cluster import lose
    from sae_sweep.launch.ledger import read_ledgers, tell
    from sae_sweep.store.status import prepare, report_failed, state, unsettled

    plan.refuse_another()
    waiting = [run for run in plan.runs if state(run.folder) != "done"]
    prepare(plan.runs)
    plan.save()
    groups = [rest for group in plan.groups() if (rest := [run for run in group if run in waiting])]
    log.info("%s: %d runs, %d groups to train", plan.folder.root, len(plan.runs), len(groups))
    try:
        numbers = [freeze_group(plan, group) for group in groups]
        launch([_overrides(plan, number) for number in numbers])
    except Exception as error:  # the launcher's own; jobs it has queued may still train their runs
        log.error("the launcher stopped with %s: %s", type(error).__name__, error)
    else:
        lose(plan.runs, "its job ended before it did: see the launcher's own logs")
        tell(read_ledgers(plan.folder, numbers))
    return report_failed(plan.runs) + len(unsettled(plan.runs))


def _overrides(plan: Plan, number: int) -> list[str]:
    root = plan.folder.root
    return [
        f"sweep={_quoted(plan.sweep)}",
        f"paths.output={_quoted(str(root.parent))}",
        f"+{_KEY}.folder={_quoted(str(root))}",
        f"+{_KEY}.number={number}",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
