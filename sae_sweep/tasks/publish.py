"""`task=publish`: uploads SAEs to the Hugging Face Hub, in SAELens's layout, with a model card."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sae_sweep.activations.model_files import BUNDLED, local_path
from sae_sweep.config import HubDataset, ModelConfig, RunConfig, SaeSweepError, escaped
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report.model_card import MARK, Published, model_card
from sae_sweep.saes import hub
from sae_sweep.saes.disk import CONFIG_FILE, WEIGHTS_FILE
from sae_sweep.store import read_json, read_metrics
from sae_sweep.tasks.analysed import Analysed, runs_selected

log = logging.getLogger(__name__)

_CARD, _METRICS = "README.md", "metrics.json"


def publish(request: Request) -> int:
    """Upload the SAEs of a sweep, or of one run, in one commit, with a card of all SAEs in the repository.

    Returns the number of SAEs that are left out: a file of theirs is damaged.

    Raises:
        SaeSweepError: if no SAE is finished, or the hub cannot be reached, or refuses.
    """
    place = hub.destination(str(request.command.to))
    selection = runs_selected(request.command)
    files: dict[str, Path | bytes] = {}
    for one in selection.saes:
        try:
            files |= _files(one, str(PurePosixPath(place.folder) / one.name))
        except SaeSweepError as error:
            selection.left_out[one.name] = error
    for name, why in selection.left_out.items():
        log.error("%s is left out: %s", name, why)
    if not files:
        return len(selection.left_out)
    there = hub.read_small(place.repo, [CONFIG_FILE, _METRICS, _CARD])
    card = there.get(_CARD)
    if card is None or MARK.encode() in card:
        undertrained = request.command.matching.undertrained
        files[_CARD] = model_card(place.repo, _published({**there, **files}), undertrained).encode()
    else:
        log.warning("%s has a %s that sae_sweep did not write: it stays as it is", place.repo, _CARD)
    count = len(selection.saes) - len(selection.left_out.keys() & {one.name for one in selection.saes})
    address = hub.upload(place.repo, files, f"{count} SAE{'s' if count > 1 else ''} trained with sae_sweep")
    show(f"published {count} SAE{'s' if count > 1 else ''}: {address}\n")
    return len(selection.left_out)


def _files(one: Analysed, folder: str) -> dict[str, Path | bytes]:
    """The files of an SAE by their path in the repository.

    Raises:
        SaeSweepError: if a file of the run is damaged.
    """
    one.load()  # refuses weights that are not those which were trained
    metrics = read_metrics(one.folder, one.owner)
    values = {**metrics.values, "evaluation": dict(metrics.evaluation)}
    cfg = _without_this_machine(read_json(one.folder.sae / CONFIG_FILE), one.config)
    return {
        f"{folder}/{CONFIG_FILE}": _json(cfg),
        f"{folder}/{WEIGHTS_FILE}": one.folder.sae / WEIGHTS_FILE,
        f"{folder}/{_METRICS}": _json(values),
    }


def _without_this_machine(cfg: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """`cfg.json` with labels in place of paths on this disk, and without the machine's name."""
    metadata = dict(cfg["metadata"])
    metadata["provenance"] = {
        key: value for key, value in metadata.get("provenance", {}).items() if key != "host"
    }
    if _is_on_hub(config.model):
        metadata["base_model"] = config.model.path
    elif not config.model.path.startswith(BUNDLED):
        metadata["model_path"] = config.model.label
    if isinstance(config.dataset, HubDataset):
        metadata["hub_dataset"] = config.dataset.path
    else:
        metadata["dataset_path"] = config.dataset.name
    return {**cfg, "metadata": metadata}


def _is_on_hub(model: ModelConfig) -> bool:
    try:
        return not model.path.startswith(BUNDLED) and local_path(model) is None
    except SaeSweepError:  # a folder that is gone
        return False


def _published(files: Mapping[str, Path | bytes]) -> list[Published]:
    """The SAEs of this package among the files of a repository; a folder that cannot be read is left out."""
    found = []
    for path in sorted(files):
        where = PurePosixPath(path)
        if where.name != CONFIG_FILE:
            continue
        folder = "" if str(where.parent) == "." else str(where.parent)
        metrics = files.get(str(where.parent / _METRICS), b"{}")
        one = Published(folder, _parsed(files[path]), _parsed(metrics))
        if one.architecture:
            found.append(one)
        else:
            log.info("the card leaves out %s, which sae_sweep did not write", escaped(path))
    return found


def _parsed(content: Path | bytes) -> Any:
    """A JSON value; None if it is none."""
    try:
        return json.loads(content) if isinstance(content, bytes) else None
    except ValueError:
        return None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
