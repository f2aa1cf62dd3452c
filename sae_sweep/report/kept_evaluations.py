"""Evaluations of SAEs on texts, kept on disk: a stopped `task=transfer` goes on where it was."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from sae_sweep.config import SaeSweepError
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.store import is_present

log = logging.getLogger(__name__)

_DECIDED_BY, _METRICS = b"decided_by", b"metrics"


class KeptEvaluation(NamedTuple):
    """What is kept of an evaluation."""

    metrics: Mapping[str, float]
    """Those of `analysis.evaluation.Evaluation`; NaN where undefined."""
    densities: np.ndarray
    """Share of tokens on which each feature fires, [d_sae]."""


def read_kept(path: Path, decided_by: str) -> KeptEvaluation | None:
    """Read an evaluation; None if there is none, or something else decided it, or the file is damaged.

    Args:
        path: of the file.
        decided_by: digest of all that decides the numbers.
    """
    if not is_present(path):
        return None
    try:
        table = read_parquet(path, ["density"], "", old=False)
    except SaeSweepError as error:
        log.warning("%s; it is evaluated again", error)
        return None
    known = table.schema.metadata
    if known[_DECIDED_BY].decode() != decided_by:
        return None
    return KeptEvaluation(json.loads(known[_METRICS]), table["density"].to_numpy())


def write_kept(path: Path, decided_by: str, one: KeptEvaluation) -> None:
    """Write an evaluation. Raises SaeSweepError if it cannot be written; none is left incomplete."""
    table = pyarrow.table({"density": pyarrow.array(one.densities)})
    about = {_DECIDED_BY: decided_by, _METRICS: json.dumps(dict(one.metrics))}
    write_parquet(path, table.replace_schema_metadata(about))
