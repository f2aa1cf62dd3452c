"""Sinks for metrics: the local history of a run, and W&B."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep.config import CommandConfig, TrackingConfig, digest
from sae_sweep.store import PlannedRun, RunFolder, SweepFolder, provenance
from sae_sweep.store.resolved import Conditions
from sae_sweep.tracking.history import History, HistoryMark
from sae_sweep.tracking.wandb_run import WandbRun, WandbSpec


class RunLabels(NamedTuple):
    """How a run is told apart from the others of its sweep."""

    name: str
    """A short name: the values in which it differs from them."""
    keys: Mapping[str, Any]
    """Its keys as one types them, each with a plain value."""
    tags: Sequence[str] = ()


class RunSink:
    """The `MetricSink` of one run. W&B is opened by the first call that logs, or by `rewind`."""

    def __init__(self, folder: RunFolder, wandb_run: WandbRun | None) -> None:
        self._root = folder.root
        self._history = History(folder.history)
        self._wandb = wandb_run
        self._opened = False

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        self._log(tokens, dict(values))

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        values = {"histogram": name, "counts": _floats(counts), "edges": _floats(edges)}
        self._log(self._history.tokens, values)

    def summary(self, values: Mapping[str, float]) -> None:
        self._log(self._history.tokens, {"summary": dict(values)})

    def image(self, name: str, path: Path) -> None:
        self._log(self._history.tokens, {"image": name, "path": _relative(path, self._root)})

    def artifact(self, name: str, folder: Path) -> None:
        self._log(self._history.tokens, {"artifact": name, "path": _relative(folder, self._root)})

    def mark(self) -> HistoryMark:
        return self._history.mark()

    def rewind(self, mark: HistoryMark | None) -> None:
        self._history.rewind(mark)
        self._open()

    def finish(self, *, failed: bool) -> None:
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def _log(self, tokens: int, values: Mapping[str, Any]) -> None:
        if not self._opened:
            self._history.resume()
            self._open()
        record = self._history.append(tokens, values)
        if self._wandb is not None:
            self._wandb.log(record)

    def _open(self) -> None:
        self._opened = True
        if self._wandb is not None:
            self._wandb.open(self._history.read())


class ComparisonSink:
    """Logs the comparison of a sweep's SAEs to W&B; does nothing without W&B."""

    def __init__(self, root: Path, wandb_run: WandbRun | None) -> None:
        self._root = root
        self._wandb = wandb_run
        if wandb_run is not None:
            wandb_run.open([])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell is a string, a number or None."""
        self._log({"table": name, "columns": columns, "rows": rows})

    def image(self, name: str, path: Path) -> None:
        """Log a figure that is on disk."""
        self._log({"image": name, "path": _relative(path, self._root)})

    def html(self, name: str, path: Path) -> None:
        """Log a page that is on disk."""
        self._log({"html": name, "path": _relative(path, self._root)})

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        """Log a histogram: `counts` of length n, `edges` of length n + 1."""
        self._log({"histogram": name, "counts": _floats(counts), "edges": _floats(edges)})

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the final values of the comparison."""
        self._log({"summary": dict(values)})

    def finish(self, *, failed: bool = False) -> None:
        """Close the sink; nothing may be logged afterwards."""
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def _log(self, values: Mapping[str, Any]) -> None:
        if self._wandb is not None:
            self._wandb.log({"tokens": 0, **values})


def _relative(path: Path, root: Path) -> str:
    """The path from `root`, so that the record stays valid when the sweep's folder is moved."""
    return Path(os.path.relpath(path, root)).as_posix()


def _floats(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def open_sink(
    run: PlannedRun,
    tracking: TrackingConfig,
    sweep: SweepFolder,
    conditions: Conditions,
    labels: RunLabels | None = None,
) -> RunSink:
    """Open the sink of one run; records that the history already has are kept until `rewind`.

    W&B gets the run's keys as one types them, its whole config as `run`, and as `provenance` the versions,
    host and fingerprints behind its weights, and what `auto` became. Its id is made from sweep and run id, so
    that a resumed run continues its W&B run.
    """
    labels = labels or RunLabels(run.name, {})
    if tracking.backend == "none":
        return RunSink(run.folder, None)
    config = {
        **labels.keys,
        "sweep_name": sweep.root.name,
        "run_name": run.name,
        "run": run.config.as_dict(),
        "provenance": {**provenance(run), **conditions.as_status()},
    }
    spec = WandbSpec(
        id=digest([sweep.root.name, run.run_id]),
        name=labels.name,
        sweep=sweep.root,
        tracking=tracking,
        base=run.folder.root,
        config=config,
        tags=labels.tags,
    )
    return RunSink(run.folder, WandbRun(spec))


def open_comparison_sink(
    sweep: SweepFolder,
    command: CommandConfig,
    runs: Sequence[str],
    *,
    swept: Sequence[Mapping[str, Any]] = (),
    what: str = "comparison",
) -> ComparisonSink:
    """Open the sink for results over all runs of a sweep.

    Args:
        sweep: the group in W&B.
        command: logged in full to W&B.
        runs: names of the runs that were compared.
        swept: swept keys of each of them; W&B gets every value of each key.
        what: comparison or report; each has its own W&B run.
    """
    if command.tracking.backend == "none":
        return ComparisonSink(sweep.root, None)
    config = {
        **_values(swept),
        "sweep_name": sweep.root.name,
        "experiment": command.experiment,
        "runs": list(runs),
        "command": command.as_dict(),
    }
    spec = WandbSpec(
        id=digest([sweep.root.name, what]),
        name=what,
        sweep=sweep.root,
        tracking=command.tracking,
        base=sweep.root,
        config=config,
        job_type=what,
        tags=[what, *([command.experiment] if command.experiment else [])],
    )
    return ComparisonSink(sweep.root, WandbRun(spec))


def _values(swept: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The different values of each swept key, in the order of the runs."""
    found: dict[str, list[Any]] = {}
    for keys in swept:
        for key, value in keys.items():
            values = found.setdefault(wandb_key(key), [])
            if value not in values:
                values.append(value)
    return found


def wandb_key(key: str) -> str:
    """A config key as one key of W&B, to which a dot would be one level more."""
    return key.replace(".", "/")
