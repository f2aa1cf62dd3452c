"""`runs.parquet` of a sweep: one row per run, with its keys, state and final metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow

from sae_sweep.config import RunConfig, SaeSweepError, escaped
from sae_sweep.config.swept import main_keys, swept_keys
from sae_sweep.report.parquet import plain_column, write_parquet
from sae_sweep.report.shortened import short_names
from sae_sweep.store import (
    DAMAGED,
    RunFolder,
    SweepFolder,
    is_present,
    planned_run,
    read_metrics,
    read_plan,
    read_shown_status,
    shown_state,
)

_RENAMED = {"tokens": "evaluated_tokens"}
"""Metrics whose names are keys of a run, too."""


def write_runs(folder: SweepFolder) -> Path:
    """Write `runs.parquet` of the sweep.

    Raises:
        SaeSweepError: if the plan cannot be read, or the file cannot be written.
    """
    return write_parquet(folder.runs_table, runs_table(folder))


def runs_table(folder: SweepFolder) -> pyarrow.Table:
    """One row per run of the sweep, as its files are now, in the order of the plan.

    Columns: name, short (what tells the runs apart), id, state, error; the keys that name a run (model,
    layer, dataset, architecture, k, ..., seed, tokens) and all others that differ between runs; the final
    metrics; mixed. What a run does not have is null.
    """
    records = read_plan(folder)["runs"]
    configs = [_config(record, folder) for record in records]
    known = [config for config in configs if config is not None]
    keys = iter(zip(known, swept_keys(known), strict=True))
    rows = [
        {"name": record["name"], "short": short, "id": record["id"]}
        | _outcome(folder.run(record["name"]), record["id"])
        | ({} if config is None else _keys(*next(keys)))
        for record, config, short in zip(records, configs, short_names(records), strict=True)
    ]
    metrics = [_metrics(folder.run(record["name"]), record["id"]) for record in records]
    first = dict.fromkeys(column for row in rows for column in row if column != "mixed")
    last = dict.fromkeys(column for row in metrics for column in row)
    whole = [{**own, **row} for row, own in zip(rows, metrics, strict=True)]
    return pyarrow.table(
        {name: plain_column([row.get(name) for row in whole]) for name in (*first, *last, "mixed")}
    )


def _config(record: Mapping[str, Any], folder: SweepFolder) -> RunConfig | None:
    try:
        return planned_run(record, folder).config
    except SaeSweepError:
        return None


def _keys(config: RunConfig, swept: Mapping[str, Any]) -> dict[str, Any]:
    return {**main_keys(config), "tokens": config.tokens, **swept}


def _outcome(folder: RunFolder, run_id: str) -> dict[str, Any]:
    try:
        status = read_shown_status(folder, run_id)
    except SaeSweepError as damage:
        return {"state": DAMAGED, "error": escaped(damage), "mixed": None}
    return {"state": shown_state(status, folder), "error": status.error, "mixed": bool(status.mixed)}


def _metrics(folder: RunFolder, run_id: str) -> dict[str, float | None]:
    if not is_present(folder.metrics):
        return {}
    try:
        values = read_metrics(folder, run_id).values
    except SaeSweepError:
        return {}
    return {_RENAMED.get(name, name): value for name, value in values.items()}
