"""Short names, keys and tags under which W&B shows the runs of a sweep."""

from sae_sweep.config import SaeSweepError
from sae_sweep.config.swept import main_keys, swept_keys
from sae_sweep.plan import Plan
from sae_sweep.report.formatting import short_labels
from sae_sweep.store import PlannedRun, planned_run, read_plan
from sae_sweep.tracking import RunLabels, wandb_key


def run_labels(plan: Plan) -> dict[str, RunLabels]:
    """Labels of every run of the plan and of its sweep, by run id: a job's plan has only a part of them."""
    runs = {run.run_id: run for run in [*_on_disk(plan), *plan.runs]}
    swept = swept_keys([run.config for run in runs.values()])
    names = short_labels([run.name for run in runs.values()], swept)
    found = {}
    for run, keys, name in zip(runs.values(), swept, names, strict=True):
        config = run.config
        every = {**main_keys(config), "tokens": config.tokens, "batch": config.batch, **keys}
        tags = [config.dataset.name, config.architecture.kind, f"L{config.layer}"]
        if plan.command.experiment:
            tags.append(plan.command.experiment)
        found[run.run_id] = RunLabels(name, {wandb_key(key): value for key, value in every.items()}, tags)
    return found


def _on_disk(plan: Plan) -> list[PlannedRun]:
    """The readable runs of `plan.json`; none if it is damaged, which concerns labels only."""
    found = []
    try:
        records = read_plan(plan.folder)["runs"]
    except SaeSweepError:
        return []
    for record in records:
        try:
            found.append(planned_run(record, plan.folder))
        except SaeSweepError:
            continue
    return found
