"""Per-feature statistics of a run on disk: one row per feature, and the two histograms."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow
import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis import Evaluation, Histogram
from sae_sweep.config import escaped
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.store import unreadable, write_json

_STATISTICS = "statistics.parquet"
_RUN_ID = b"run_id"
"""In the file's metadata."""
_REMEDY = "delete the run's folder and launch the same command again to train it anew"


class FeatureFiles(NamedTuple):
    """Files with the feature statistics of a run."""

    statistics: Path
    """One row per feature: feature, density, mean_activation (over tokens where it fires), max_activation."""
    histograms: Path
    """JSON: `density` and `activations`, each with counts and edges."""


def write_features(folder: Path, run_id: str, evaluation: Evaluation) -> FeatureFiles:
    """Write the per-feature statistics into `folder`, the run's `features/`."""
    table = pyarrow.table(
        {
            "feature": pyarrow.array(range(len(evaluation.densities)), pyarrow.int32()),
            "density": evaluation.densities.numpy(),
            "mean_activation": evaluation.mean_activations.numpy(),
            "max_activation": evaluation.max_activations.numpy(),
        }
    )
    files = FeatureFiles(folder / _STATISTICS, folder / "histograms.json")
    write_parquet(files.statistics, table.replace_schema_metadata({_RUN_ID: run_id}))
    histograms = {"density": evaluation.density_histogram, "activations": evaluation.activation_histogram}
    write_json(files.histograms, {name: _as_dict(histogram) for name, histogram in histograms.items()})
    return files


def read_densities(folder: Path, run_id: str, d_sae: int) -> Float[Tensor, " d_sae"]:
    """Read the densities that `write_features` wrote into `folder`, one per feature.

    Raises:
        SaeSweepError: one line with the file and the remedy, if it is missing, damaged, or another run's.
    """
    densities = _read(folder, "density", run_id, d_sae)
    if not ((densities >= 0) & (densities <= 1)).all():
        raise unreadable(folder / _STATISTICS, "a density is not between 0 and 1", _REMEDY)
    return densities


def read_mean_activations(folder: Path, run_id: str, d_sae: int) -> Float[Tensor, " d_sae"]:
    """Read the mean activations on tokens where a feature fires that `write_features` wrote.

    Raises:
        SaeSweepError: as `read_densities`.
    """
    return _read(folder, "mean_activation", run_id, d_sae)


def read_statistics(folder: Path, run_id: str, columns: Sequence[str]) -> pyarrow.Table:
    """Read columns of the table that `write_features` wrote: a row per feature.

    Raises:
        SaeSweepError: one line with the file and the remedy, if it is missing, damaged, or another run's.
    """
    path = folder / _STATISTICS
    table = read_parquet(path, columns, _REMEDY)
    owner = (table.schema.metadata or {}).get(_RUN_ID, run_id.encode())  # earlier versions wrote none
    if owner != run_id.encode():
        raise unreadable(
            path, f"it is of run {escaped(owner.decode(errors='replace'))}, not {run_id}", _REMEDY
        )
    return table


def _read(folder: Path, name: str, run_id: str, d_sae: int) -> Float[Tensor, " d_sae"]:
    path, column = folder / _STATISTICS, read_statistics(folder, run_id, [name])[name]
    if not pyarrow.types.is_floating(column.type) or column.null_count or len(column) != d_sae:
        raise unreadable(
            path, f"{len(column)} values {name} of type {column.type} for {d_sae} features", _REMEDY
        )
    return torch.from_numpy(column.to_numpy().copy())


def _as_dict(histogram: Histogram) -> dict[str, list[float]]:
    return {"counts": list(histogram.counts), "edges": list(histogram.edges)}
