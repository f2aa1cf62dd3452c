"""`task=train`: train every run that is not done yet, then compare the SAEs of the sweep."""

from sae_sweep.launch import open_launcher
from sae_sweep.launch.lm_use import log_lm_use
from sae_sweep.plan import Request, make_plan
from sae_sweep.signals import stop_signals
from sae_sweep.store import report_failed, state, unfinished
from sae_sweep.tasks.match import compare_finished


def train(request: Request) -> int:
    """Train and compare; returns how many runs failed.

    Raises:
        SaeSweepError: if the sweep's folder holds another plan, a run's is held by another process or holds
            another run, or no jobs are taken.
        Interrupted: after everything was saved, if a signal asked to stop.
    """
    plan = make_plan(request)
    with stop_signals() as stop:
        waiting = [run for run in plan.runs if state(run.folder) != "done"]
        if not open_launcher(request).train(plan, stop):
            return 0
        log_lm_use(waiting)
        failed = report_failed(plan.runs) + len(unfinished(plan.runs))
        compare_finished(plan.folder, plan.command, plan.runs[0].config.device)
    return failed
