"""What the user chose for W&B outside our config: its variables, its settings files, and its keys.

A key of ours that is set comes first; W&B's own default comes last.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweep.config import ConfigError, TrackingConfig, expanded
from sae_sweep.config.folders import known_home
from sae_sweep.config.tracking import wandb_name_problems, wandb_tag_problems

if TYPE_CHECKING:
    from wandb import Settings

DEFAULT_PROJECT = "sae_sweep"
_MODES = {"dryrun": "offline", "run": "online"}  # W&B's own former names
_NAMES = ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP")


def refuse_wrong_names(tracking: TrackingConfig) -> None:
    """Refuse a project, entity, group, tag or folder in W&B's variables that cannot be; does not import W&B.

    W&B reads its variables, and refuses wrong ones, also where a key of ours comes first. A sweep of its own
    is refused, too: it would ignore our ids.

    Raises:
        ConfigError: naming the variables.
    """
    if tracking.backend == "none" or _wanted_mode(tracking) == "disabled":
        return
    problems: list[str] = []
    if agent := os.environ.get("WANDB_SWEEP_ID"):
        problems.append(
            f"WANDB_SWEEP_ID={agent}: under `wandb agent` all runs of a command get one id in W&B and mix: "
            "sweep with comma lists (seed=42,49) without the agent, or add tracking=none"
        )
    for variable in _NAMES:
        name = os.environ.get(variable) or None
        problems += wandb_name_problems(variable, name, in_urls=variable != "WANDB_RUN_GROUP")
    if tags := os.environ.get("WANDB_TAGS"):
        problems += wandb_tag_problems("WANDB_TAGS", tags.split(","))
    if tracking.folder is None:
        known_home(problems, "WANDB_DIR", os.environ.get("WANDB_DIR"))
    if problems:
        raise ConfigError(problems)


def wandb_mode(tracking: TrackingConfig) -> str:
    """online, offline or disabled, as chosen by `tracking.mode`, WANDB_MODE, or W&B's settings file.

    If none of them chooses, online if W&B finds a key.
    """
    if wanted := _wanted_mode(tracking):
        return wanted
    in_files = silent_settings().mode  # `wandb offline` and `wandb disabled` write it
    if in_files in ("offline", "disabled"):
        return in_files
    return "online" if _logged_in() else "offline"


def _wanted_mode(tracking: TrackingConfig) -> str:
    wanted = tracking.mode or os.environ.get("WANDB_MODE", "").strip().lower()
    return _MODES.get(wanted, wanted)


def wandb_project(tracking: TrackingConfig) -> str:
    return tracking.project or _chosen("WANDB_PROJECT", "project") or DEFAULT_PROJECT


def wandb_entity(tracking: TrackingConfig) -> str | None:
    return tracking.entity or _chosen("WANDB_ENTITY", "entity")


def wandb_group(tracking: TrackingConfig, sweep: str) -> str:
    return tracking.group or _chosen("WANDB_RUN_GROUP", "run_group") or sweep


def wandb_tags(tracking: TrackingConfig) -> list[str]:
    """The user's own tags."""
    if tracking.tags is not None:
        return [tag.strip() for tag in tracking.tags]
    return _tags_of_environment() or list(silent_settings().run_tags or ())


def wandb_folder(tracking: TrackingConfig, sweep: Path) -> Path:
    """The folder in which W&B makes its folder `wandb`."""
    return expanded(tracking.folder or os.environ.get("WANDB_DIR") or str(sweep)).absolute()


def _tags_of_environment() -> list[str]:
    return [tag for part in os.environ.get("WANDB_TAGS", "").split(",") if (tag := part.strip())]


def _chosen(variable: str, attribute: str) -> Any:
    return os.environ.get(variable) or getattr(silent_settings(), attribute)


def _logged_in() -> bool:
    """Whether W&B finds a key or token for its server; asks neither the server nor the user."""
    import wandb

    silent_settings()
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return True  # one of the wrong form: signing in says what is wrong with it


def silent_settings() -> "Settings":
    """W&B's settings, from its files and the environment; W&B prints nothing in this process from here on."""
    import wandb

    # an argument of setup would come too late: W&B prints which settings files it reads
    os.environ["WANDB_SILENT"] = "true"
    return wandb.setup().settings
