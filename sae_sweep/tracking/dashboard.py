"""Saves the view and the report of a sweep in W&B, and keeps beside the sweep what was or would be saved."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_sweep.config import SaeSweepError, TrackingConfig, first_line
from sae_sweep.signals import obeyed
from sae_sweep.store import SweepFolder, regular, write_json
from sae_sweep.tracking.environment import (
    silent_settings,
    wandb_entity,
    wandb_mode,
    wandb_project,
)
from sae_sweep.tracking.panels import Place, make_report, make_view
from sae_sweep.tracking.wandb_run import answers

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

logger = logging.getLogger(__name__)

_LONGEST_REASON = 200


class Dashboard(NamedTuple):
    """What was made for a sweep."""

    spec: Path
    """JSON with the specs of the view and the report, and their ids and addresses once they are saved."""
    view: str | None
    """Its address; None as long as nobody is logged in."""
    report: str | None


def make_dashboard(folder: SweepFolder, tracking: TrackingConfig, swept: Sequence[str]) -> Dashboard:
    """Make the view and the report of a sweep; a second time, those that the first one saved are replaced.

    Args:
        folder: the sweep's.
        tracking: says which project.
        swept: swept keys, as W&B has them.

    Raises:
        SaeSweepError: if W&B is reached and does not take them; the specs are written then too.
    """
    saved = _read(folder.dashboard)
    try:
        with obeyed():
            server, project = str(silent_settings().base_url), wandb_project(tracking)
            online = wandb_mode(tracking) == "online" and _is_reached(server)
            entity = wandb_entity(tracking) or (_default_entity() if online else None)
            if entity is None and (saved.get("server"), saved.get("project")) == (server, project):
                entity = saved.get("entity")
            place = Place(str(entity or ""), project, folder.root.name, swept)
            made = _Made(make_view(place), make_report(place), make_report(place._replace(entity="")))
    except ModuleNotFoundError as error:
        raise SaeSweepError(
            f"task=dashboard needs a package that is not installed ({error.name}): "
            "pip install 'sae-sweep[dashboard]'"
        ) from error
    except Exception as error:  # of W&B, whatever it is
        raise SaeSweepError(f"W&B does not take part: {first_line(error)[:_LONGEST_REASON]}") from error
    where = {"server": server, "entity": place.entity, "project": project}
    if all(saved.get(key) == value for key, value in where.items()):
        made.take_ids(saved)
    if online:
        return _save(folder.dashboard, where, made)
    _write(folder.dashboard, where, made)
    return Dashboard(folder.dashboard, None, None)


class _Made(NamedTuple):
    """The view and the report of one sweep."""

    view: "Workspace"
    report: "Report"
    unbound: "Report"
    """The report for a file: with an entity, each of its sets of runs asks the server for its project."""

    def take_ids(self, saved: Mapping[str, Any]) -> None:
        """Take the ids under which both were saved, if `saved` has them."""
        with suppress(KeyError, TypeError):
            self.view._internal_id, self.view._internal_name = saved["view"]["id"], saved["view"]["name"]
            self.report.id = saved["report"]["id"]


def _read(path: Path) -> Mapping[str, Any]:
    """What an earlier command wrote; nothing if there is none, or it is damaged."""
    try:
        with regular(path).open("rb") as file:
            saved = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, Mapping) else {}


def _save(path: Path, where: Mapping[str, str], made: _Made) -> Dashboard:
    try:
        with obeyed():
            made.report.save()
            made.view.save()
            urls = {"view": made.view.url, "report": made.report.url}
    except Exception as error:  # of W&B, whatever it is
        _write(path, where, made)
        anew = (
            ", and makes new ones if you delete that file" if made.report.id or made.view._internal_id else ""
        )
        raise SaeSweepError(
            f"W&B did not save the view and the report ({first_line(error)[:_LONGEST_REASON]}): "
            f"{path} has both; the same command tries again{anew}"
        ) from error
    _write(path, where, made, urls)
    return Dashboard(path, **urls)


def _is_reached(server: str) -> bool:
    """Whether the server answers and knows the user; if not, a warning says why."""
    import wandb

    try:
        with obeyed():
            if not answers(server):
                raise ConnectionError(f"{server} does not answer")
            if not wandb.login(prompt=False, verify=False):
                raise ConnectionError(f"no key for {server}: wandb login")
    except Exception as error:  # of W&B, whatever it is
        logger.warning("W&B cannot be reached (%s)", first_line(error)[:_LONGEST_REASON])
        return False
    return True


def _default_entity() -> str | None:
    import wandb

    entity = wandb.Api().default_entity
    return None if entity is None else str(entity)


def _write(path: Path, where: Mapping[str, str], made: _Made, urls: Mapping[str, str] | None = None) -> None:
    """Write both specs as W&B's API takes them, with the ids under which they are saved."""
    view_model, report_model = made.view._to_model(), made.unbound._to_model()
    specs: dict[str, dict[str, Any]] = {
        "view": {
            "id": view_model.id,
            "name": view_model.name,
            "displayName": view_model.display_name,
            "type": "project-view",
            "spec": _spec(view_model.spec),
        },
        "report": {
            "id": made.report.id,
            "displayName": report_model.display_name,
            "description": report_model.description,
            "type": "runs",
            "spec": _spec(report_model.spec),
        },
    }
    for name, url in (urls or {}).items():
        specs[name]["url"] = url
    write_json(path, {**where, **specs})


def _spec(model: Any) -> Any:
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
