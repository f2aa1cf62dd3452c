"""Launcher that trains the groups in this process, in turn."""

import logging

from sae_sweep.config.pasted import pasted
from sae_sweep.launch.group import train_runs
from sae_sweep.plan import Plan
from sae_sweep.signals import StopRequest
from sae_sweep.store import is_complete, prepared

log = logging.getLogger(__name__)


class InProcess:
    """Trains the groups in turn; holds locks on the folders of all runs of the plan."""

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        with prepared(plan.runs) as ready:
            plan.save()
            waiting = [run for run in ready if not is_complete(run)]
            done = len(ready) - len(waiting)
            log.info("%s: %d runs, %d already done", pasted(plan.folder.root), len(plan.runs), done)
            train_runs(plan, waiting, stop)
        return True
