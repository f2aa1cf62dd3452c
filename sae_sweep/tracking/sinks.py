"""Sinks for metrics: the local history of a run, and W&B."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_sweep.config import Config, digest
from sae_sweep.store import RunFolder
from sae_sweep.tracking.history import History
from sae_sweep.tracking.wandb_run import WandbRun, WandbSpec


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

    def mark(self) -> int:
        self._history.flush()
        return self._history.lines

    def rewind(self, mark: int) -> None:
        self._history.rewind(mark)
        self._open()

    def finish(self, *, failed: bool) -> None:
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def _log(self, tokens: int, values: Mapping[str, Any]) -> None:
        if not self._opened:
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
    config: Config,
    *,
    run_id: str,
    name: str,
    sweep: str,
    folder: RunFolder,
    wandb_folder: Path,
    provenance: Mapping[str, Any],
) -> RunSink:
    """Open the sink of one run; records that the history already has are kept until `rewind`.

    Args:
        config: logged in full to W&B; `config.tracking` says whether W&B is used.
        run_id: gives the W&B id together with `sweep`, so that a resumed run continues its W&B run.
        name: the run's name in W&B.
        sweep: the run's group in W&B.
        folder: the run's folder, which has `history.jsonl`.
        wandb_folder: W&B writes to `wandb/` in this folder.
        provenance: versions, host, fingerprints of text and LM; `provenance` in W&B's config.
    """
    spec = _spec(
        config,
        id=digest([sweep, run_id]),
        name=name,
        sweep=sweep,
        folder=wandb_folder,
        base=folder.root,
        job_type="train",
        provenance=provenance,
    )
    return RunSink(folder, WandbRun(spec) if spec else None)


def open_comparison_sink(
    sweep: str, config: Config, folder: Path, *, provenance: Mapping[str, Any], what: str = "comparison"
) -> ComparisonSink:
    """Open the sink for results over all runs of a sweep; W&B writes to `wandb/` in `folder`.

    Args:
        sweep: the group in W&B.
        config: logged in full to W&B; `config.tracking` says whether W&B is used.
        folder: the sweep's folder.
        provenance: as in `open_sink`.
        what: comparison or report; each has its own W&B run.
    """
    spec = _spec(
        config,
        id=digest([sweep, what]),
        name=f"{sweep}-{what}",
        sweep=sweep,
        folder=folder,
        base=folder,
        job_type=what,
        provenance=provenance,
    )
    return ComparisonSink(folder, WandbRun(spec) if spec else None)


def _spec(
    config: Config,
    *,
    id: str,
    name: str,
    sweep: str,
    folder: Path,
    base: Path,
    job_type: str,
    provenance: Mapping[str, Any],
) -> WandbSpec | None:
    if config.tracking.backend == "none":
        return None
    return WandbSpec(
        id=id,
        name=name,
        group=sweep,
        project=config.tracking.project,
        entity=config.tracking.entity,
        folder=folder,
        base=base,
        config={**config.as_dict(), "provenance": dict(provenance)},
        job_type=job_type,
    )
