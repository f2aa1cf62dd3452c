"""Reads and writes `metrics.json`, the final evaluation of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_sweep.config import ConfigError, typed
from sae_sweep.store.paths import RunFolder
from sae_sweep.store.records import read_record, unreadable, write_record

_EVALUATION, _RUN_ID = "evaluation", "run_id"
_REMEDY = "launch the sweep again, which evaluates the run again"


@dataclass(frozen=True)
class Metrics:
    """Final evaluation of a run."""

    values: Mapping[str, float | None]
    """By name; None if the value is undefined."""
    init_match: float
    """Share of features that still match the SAE's own initial dictionary."""
    evaluation: Mapping[str, Any]
    """The `evaluation` keys that gave the values; empty in files of earlier versions."""


def write_metrics(
    folder: RunFolder, run_id: str, values: Mapping[str, float], evaluation: Mapping[str, Any]
) -> None:
    """Write the metrics with the `evaluation` keys that gave them; NaN and infinity are written as null."""
    defined = {key: value if math.isfinite(value) else None for key, value in values.items()}
    write_record(folder.metrics, {_RUN_ID: run_id, **defined, _EVALUATION: dict(evaluation)})


def read_metrics(folder: RunFolder, run_id: str) -> Metrics:
    """Read the metrics of a run.

    Raises:
        SaeSweepError: naming the file and the remedy, if they are damaged or another run's.
    """
    record = read_record(folder.metrics, _REMEDY)
    owner = record.pop(_RUN_ID, run_id)  # earlier versions wrote none
    if owner != run_id:
        raise unreadable(folder.metrics, f"it is of run {owner}, not {run_id}", _REMEDY)
    try:
        evaluation = typed(record.pop(_EVALUATION, {}), Mapping[str, str | bool | float | None], _EVALUATION)
        values = typed(record, Mapping[str, float | None], "metrics")
        init_match = typed(values.get("init_match"), float, "init_match")
    except ConfigError as error:
        raise unreadable(folder.metrics, error, _REMEDY) from error
    return Metrics(values, float(init_match), evaluation)
