"""Trains through one of Hydra's launchers (`hydra/launcher=submitit_slurm`), one job per group.

Hydra's launcher calls the task function once per list of overrides, often in a fresh process.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from sae_sweep.config.pasted import pasted
from sae_sweep.launch.frozen import freeze_group
from sae_sweep.launch.jobs import mark_lost
from sae_sweep.plan import Plan
from sae_sweep.signals import StopRequest
from sae_sweep.store import is_complete, prepare

log = logging.getLogger(__name__)

JOB_KEY = "job"
"""Key added to the config of a job; the schema lacks it, so no command can set it."""


class Foreign:
    """Freezes the groups and trains them as jobs of one of Hydra's launchers."""

    def __init__(self, launch: Callable[[list[list[str]]], Any]) -> None:
        """Set the function that runs one job per list of overrides and returns when all have ended."""
        self._launch = launch

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        waiting = [run for run in prepare(plan.runs) if not is_complete(run)]
        plan.save()
        groups = [rest for group in plan.groups() if (rest := [run for run in group if run in waiting])]
        log.info("%s: %d runs, %d groups to train", pasted(plan.folder.root), len(plan.runs), len(groups))
        if not groups:
            return True
        try:
            with stop.obeyed():
                self._launch([_overrides(plan, freeze_group(plan, group).number) for group in groups])
        except Exception as error:  # any error of Hydra's launcher; queued jobs may still train their runs
            log.error("the launcher stopped with %s: %s", type(error).__name__, error)
        else:
            mark_lost(plan.runs, "its job ended before it did: see the launcher's own logs")
        return True


def _overrides(plan: Plan, number: int) -> list[str]:
    root = plan.folder.root
    return [
        f"sweep={_quoted(plan.sweep)}",
        f"paths.output={_quoted(str(root.parent))}",
        f"+{JOB_KEY}.folder={_quoted(str(root))}",
        f"+{JOB_KEY}.number={number}",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
