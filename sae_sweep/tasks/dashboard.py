"""`task=dashboard sweep=NAME`: makes a view and a report of a sweep in W&B."""

import logging

from sae_sweep.config import ConfigError, SaeSweepError
from sae_sweep.config.pasted import override, pasted
from sae_sweep.config.swept import swept_keys
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.store import SweepFolder, find_sweep, planned_run, read_plan
from sae_sweep.tracking import refuse_wrong_names, wandb_key
from sae_sweep.tracking.dashboard import Dashboard, make_dashboard
from sae_sweep.tracking.environment import wandb_folder

log = logging.getLogger(__name__)


def dashboard(request: Request) -> int:
    """Run `task=dashboard`: save the view and the report, or write their specs where nobody is logged in.

    Raises:
        ConfigError: with tracking=none, or for a name that W&B would refuse.
        SaeSweepError: if there is no such sweep, or W&B does not take them.
    """
    command = request.command
    if command.tracking.backend == "none":
        raise ConfigError(["task=dashboard needs tracking=wandb"])
    refuse_wrong_names(command.tracking)
    folder = find_sweep(command)
    made = make_dashboard(folder, command.tracking, _swept(folder))
    if made.view is not None:
        show(f"View: {made.view}\nReport: {made.report}\nTheir specs: {pasted(made.spec)}\n")
    else:
        show(_how_to_apply(folder, request, made))
    return 0


def _swept(folder: SweepFolder) -> list[str]:
    """The swept keys as W&B has them; runs whose plan is damaged are left out."""
    configs = []
    for record in read_plan(folder)["runs"]:
        try:
            configs.append(planned_run(record, folder).config)
        except SaeSweepError as error:
            log.warning("%s is left out: %s", record["name"], error)
    return [wandb_key(key) for key in dict.fromkeys(key for keys in swept_keys(configs) for key in keys)]


def _how_to_apply(folder: SweepFolder, request: Request, made: Dashboard) -> str:
    tracking = request.command.tracking
    segments = wandb_folder(tracking, folder.root) / "wandb"
    keys = {"sweep": folder.root.name, "paths.output": str(folder.root.parent)}
    chosen = {"tracking.project": tracking.project, "tracking.entity": tracking.entity}
    keys |= {key: value for key, value in chosen.items() if value is not None}
    which = " ".join(override(key, value) for key, value in keys.items())
    return (
        f"W&B is offline: the specs of the view and the report are in {pasted(made.spec)}\n"
        "To apply them:\n"
        "  wandb login\n"
        f"  wandb sync {pasted(segments)}/offline-run-*\n"
        f"  WANDB_MODE=online sae-sweep task=dashboard {which}\n"
    )
