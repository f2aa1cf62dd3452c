"""`task=train`: trains every run that is not done yet, then compares the SAEs of the sweep."""

import dataclasses
import logging

from sae_sweep.launch import open_launcher
from sae_sweep.launch.lm_use import log_fallbacks, log_lm_use
from sae_sweep.plan import Request, make_plan
from sae_sweep.plan.known import refuse_known_problems
from sae_sweep.plan.room import refuse_without_room
from sae_sweep.signals import at_once, stop_signals
from sae_sweep.store import cache_folder, readable, report_failed, report_unfinished, state
from sae_sweep.tasks.generate import sample_missing
from sae_sweep.tracking import refuse_wrong_names

log = logging.getLogger(__name__)


def train(request: Request) -> int:
    """Run `task=train`; returns the number of runs that failed, did not finish, or are damaged.

    Raises:
        ConfigError: if W&B would refuse a name that its variables give.
        SaeSweepError: if the sweep's folder holds another plan, a run's folder is in use or holds another
            run, the jobs are refused, or it is known that a run cannot be trained.
        Interrupted: if a signal asked to stop, after everything was saved.
    """
    refuse_wrong_names(request.command.tracking)
    sample_missing(request)
    wanted = make_plan(request)
    wanted.refuse_another()
    runs = readable(wanted.runs)
    damaged = [run for run in wanted.runs if run not in runs]
    plan = dataclasses.replace(wanted, runs=tuple(runs))
    if not runs:
        return len(damaged)
    with stop_signals() as stop:
        waiting = [run for run in plan.runs if state(run.folder) != "done"]
        with at_once():
            for summary in refuse_known_problems(waiting, cache_folder(plan.command.paths.cache)):
                log.info("%s", summary)
        with at_once():  # imports torch
            if request.launch is None:
                refuse_without_room(plan, waiting)
            launcher = open_launcher(request)
        if not launcher.train(plan, stop):
            return len(damaged)
        log_lm_use(waiting)
        log_fallbacks(waiting)
        failed = len(damaged) + report_failed(plan.runs) + report_unfinished(plan.runs)
        with at_once():
            from sae_sweep.tasks.match import compare_finished  # imports torch, after jobs are submitted

        names = [run.name for run in damaged]
        unreadable = compare_finished(plan.folder, plan.command, plan.runs[0].config.device, names)
    return failed or unreadable
