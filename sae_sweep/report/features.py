"""Per-feature statistics of a run on disk: one row per feature, and the two histograms."""

from pathlib import Path
from typing import NamedTuple

import pyarrow
import torch
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from sae_sweep.analysis import Evaluation, Histogram
from sae_sweep.config import SaeSweepError
from sae_sweep.report.files import write_parquet
from sae_sweep.store import write_json

_STATISTICS = "statistics.parquet"


class FeatureFiles(NamedTuple):
    """Files with the feature statistics of a run."""

    statistics: Path
    """One row per feature: feature, density, mean_activation (over tokens where it fires), max_activation."""
    histograms: Path
    """JSON: `density` and `activations`, each with counts and edges."""


def write_features(folder: Path, evaluation: Evaluation) -> FeatureFiles:
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
    write_parquet(files.statistics, table)
    histograms = {"density": evaluation.density_histogram, "activations": evaluation.activation_histogram}
    write_json(files.histograms, {name: _as_dict(histogram) for name, histogram in histograms.items()})
    return files


def read_densities(folder: Path) -> Float[Tensor, " d_sae"]:
    """Read the densities that `write_features` wrote into `folder`.

    Raises:
        SaeSweepError: naming the file, if it is missing or damaged.
    """
    path = folder / _STATISTICS
    try:
        column = parquet.read_table(path, columns=["density"])["density"]
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        raise SaeSweepError(f"cannot read {path}: {error}") from error
    return torch.from_numpy(column.to_numpy().copy())


def _as_dict(histogram: Histogram) -> dict[str, list[float]]:
    return {"counts": list(histogram.counts), "edges": list(histogram.edges)}
