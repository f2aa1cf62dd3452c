"""Records of the history, translated into calls of W&B.

W&B sorts its panels by the first part of a key: a name without a section gets that of its kind, so that no
key ever has two types.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweep.config import artifact_name
from sae_sweep.tracking.history import HistoryRecord

if TYPE_CHECKING:
    from wandb import Run

_OWN_KEYS = {"tokens", "time"}
_SCALARS = "train"
"""Section of the numbers that are logged while a run trains."""


def log_record(run: "Run", record: HistoryRecord, base: Path) -> None:
    """Log one record; relative paths in it start at `base`.

    The token count also serves as W&B's step. W&B accepts each step once, so metrics that were sent before a
    run was interrupted are not doubled when it resumes.
    """
    for kind, log in _KINDS.items():
        if kind in record:
            log(run, record, base)
            return
    values = {key: _number(value) for key, value in record.items() if key not in _OWN_KEYS}
    if int(record["tokens"]) >= run.step:
        _log(run, record, {_sectioned(_SCALARS, key): value for key, value in values.items()})


def _sectioned(section: str, name: str) -> str:
    return name if "/" in name else f"{section}/{name}"


def _log(run: "Run", record: HistoryRecord, values: Mapping[str, Any]) -> None:
    """Add values to the point of the record's token count; to a new one if W&B is already past it."""
    tokens = int(record["tokens"])
    run.log({"tokens": tokens, **values}, step=max(tokens, run.step))


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def _histogram(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    del base
    name = _sectioned("features", record["histogram"])
    if name.startswith(f"{_SCALARS}/") and int(record["tokens"]) < run.step:
        return  # sent before the run was interrupted, like the numbers of its point
    histogram = wandb.Histogram(np_histogram=(list(record["counts"]), list(record["edges"])))
    _log(run, record, {name: histogram})


def _image(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    image = wandb.Image(str(base / record["path"]))
    _log(run, record, {_sectioned("figures", record["image"]): image})


def _html(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    page = wandb.Html(
        (base / record["path"]).read_text(encoding="utf-8"), inject=False, data_is_not_path=True
    )
    _log(run, record, {_sectioned("figures", record["html"]): page})


def _table(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    del base
    table = wandb.Table(columns=list(record["columns"]), data=[list(row) for row in record["rows"]])
    _log(run, record, {_sectioned("tables", record["table"]): table})


def _artifact(run: "Run", record: HistoryRecord, base: Path) -> None:
    """Log the files of a folder as they lie there: W&B would copy them below the home folder first."""
    import wandb

    folder = base / record["path"]
    artifact = wandb.Artifact(
        artifact_name(record["artifact"]), type="model", metadata={"tokens": record["tokens"]}
    )
    # file by file: adding the folder as a whole prints a line
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _summary(run: "Run", record: HistoryRecord, base: Path) -> None:
    """Set the final values, and log them as a point too: W&B makes panels of what its history has."""
    del base
    values = {key: _number(value) for key, value in record["summary"].items()}
    run.summary.update(values)
    _log(run, record, values)


_KINDS: Mapping[str, Callable[["Run", HistoryRecord, Path], None]] = {
    "histogram": _histogram,
    "image": _image,
    "html": _html,
    "table": _table,
    "artifact": _artifact,
    "summary": _summary,
}
