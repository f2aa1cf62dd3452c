"""Evaluations of SAEs on texts, kept on disk: a stopped `task=transfer` goes on where it was."""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from sae_sweep.config import SaeSweepError
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.store import disk_errors, is_present

log = logging.getLogger(__name__)

_METRICS = b"metrics"


class KeptEvaluation(NamedTuple):
    """What is kept of an evaluation."""

    metrics: Mapping[str, float]
    """Those of `analysis.evaluation.Evaluation`; NaN where undefined."""
    densities: np.ndarray
    """Share of tokens on which each feature fires, [d_sae]."""


class KeptEvaluations:
    """A folder of evaluations, a file each, named by a digest of everything that decides its numbers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> KeptEvaluation | None:
        """Read one; None if there is none, or, with a warning, if it is damaged."""
        path = self._path(key)
        if not is_present(path):
            return None
        try:
            table = read_parquet(path, ["density"], "it is evaluated again")
        except SaeSweepError as error:
            log.warning("%s", error)
            return None
        metrics = json.loads((table.schema.metadata or {}).get(_METRICS, "null"))
        return metrics and KeptEvaluation(metrics, table["density"].to_numpy())

    def write(self, key: str, one: KeptEvaluation) -> None:
        """Write one. Raises SaeSweepError if it cannot be written; none is left incomplete."""
        table = pyarrow.table({"density": pyarrow.array(one.densities)})
        write_parquet(
            self._path(key), table.replace_schema_metadata({_METRICS: json.dumps(dict(one.metrics))})
        )

    def keep_only(self, keys: Collection[str]) -> None:
        """Remove those of other SAEs and texts."""
        kept = {self._path(key) for key in keys}
        for path in self._folder.glob("*.parquet"):
            if path not in kept:
                with disk_errors(path):
                    path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.parquet"
