"""`task=train`: trains every run that is not done yet, then compares the SAEs of the sweep."""

from sae_sweep.launch import open_launcher
from sae_sweep.launch.lm_use import log_lm_use
from sae_sweep.plan import Request, make_plan
from sae_sweep.signals import at_once, stop_signals
from sae_sweep.store import report_failed, state, unfinished


def train(request: Request) -> int:
    """Run `task=train`; returns the number of runs that failed or did not finish.

    Raises:
        SaeSweepError: if the sweep's folder holds another plan, a run's folder is in use or holds another
            run, or the jobs are refused.
        Interrupted: if a signal asked to stop, after everything was saved.
    """
    plan = make_plan(request)
    with stop_signals() as stop:
        waiting = [run for run in plan.runs if state(run.folder) != "done"]
        with at_once():  # imports torch
            launcher = open_launcher(request)
        if not launcher.train(plan, stop):
            return 0
        log_lm_use(waiting)
        failed = report_failed(plan.runs) + len(unfinished(plan.runs))
        with at_once():
            from sae_sweep.tasks.match import compare_finished  # imports torch, after jobs are submitted

        compare_finished(plan.folder, plan.command, plan.runs[0].config.device)
    return failed
