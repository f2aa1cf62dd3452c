"""Launcher that trains the groups in this process, in turn."""

import logging
from contextlib import ExitStack

from sae_sweep.launch.group import train_runs
from sae_sweep.plan import Plan
from sae_sweep.signals import StopRequest
from sae_sweep.store import freeze, hold, is_complete, set_state, state

log = logging.getLogger(__name__)


class InProcess:
    """Trains the groups in turn; holds locks on the folders of all runs of the plan."""

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        plan.refuse_another()
        with ExitStack() as held:
            for run in plan.runs:
                held.enter_context(hold(run.folder))
                freeze(run)
            plan.save()
            waiting = [run for run in plan.runs if not is_complete(run)]
            done = len(plan.runs) - len(waiting)
            log.info("%s: %d runs, %d already done", plan.folder.root, len(plan.runs), done)
            for run in waiting:
                if state(run.folder) != "done":
                    set_state(run, "pending", job=None)
            train_runs(plan, waiting, stop)
        return True
