"""Records of the history, translated into calls of W&B."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweep.tracking.history import HistoryRecord

if TYPE_CHECKING:
    from wandb import Run

_OWN_KEYS = {"tokens", "time"}


def log_record(run: "Run", record: HistoryRecord, base: Path) -> None:
    """Log one record; relative paths in it start at `base`.

    The token count also serves as W&B's step. W&B accepts each step once, so metrics that were sent before a
    run was interrupted are not doubled when it resumes.
    """
    for kind, log in _KINDS.items():
        if kind in record:
            log(run, record, base)
            return
    tokens = int(record["tokens"])
    if tokens >= run.step:
        values = {key: _number(value) for key, value in record.items() if key not in _OWN_KEYS}
        run.log({"tokens": tokens, **values}, step=tokens)


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def _histogram(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    del base
    histogram = wandb.Histogram(np_histogram=(list(record["counts"]), list(record["edges"])))
    run.log({"tokens": record["tokens"], record["histogram"]: histogram})


def _image(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    image = wandb.Image(str(base / record["path"]))
    run.log({"tokens": record["tokens"], record["image"]: image})


def _table(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    del base
    table = wandb.Table(columns=list(record["columns"]), data=[list(row) for row in record["rows"]])
    run.log({record["table"]: table})


def _artifact(run: "Run", record: HistoryRecord, base: Path) -> None:
    import wandb

    folder = base / record["path"]
    artifact = wandb.Artifact(record["artifact"], type="model", metadata={"tokens": record["tokens"]})
    # file by file: adding the folder as a whole prints a line
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
    run.log_artifact(artifact)


def _summary(run: "Run", record: HistoryRecord, base: Path) -> None:
    del base
    run.summary.update({key: _number(value) for key, value in record["summary"].items()})


_KINDS: Mapping[str, Callable[["Run", HistoryRecord, Path], None]] = {
    "histogram": _histogram,
    "image": _image,
    "table": _table,
    "artifact": _artifact,
    "summary": _summary,
}
