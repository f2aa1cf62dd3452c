"""Orphan features against shared ones, and what their removal does to the loss, on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow

from sae_sweep.analysis.ablation import Ablation
from sae_sweep.analysis.correlation import Correlation
from sae_sweep.analysis.unmatched import Contrast
from sae_sweep.report.files import write_csv
from sae_sweep.report.measure_files import NUMBER, TEXT, WHOLE, table_of_rows
from sae_sweep.report.parquet import write_parquet

_CONTRAST = (
    *(("run", TEXT), ("property", TEXT), ("orphans", NUMBER), ("shared", NUMBER), ("difference", NUMBER)),
    *(("low", NUMBER), ("high", NUMBER), ("n_orphans", WHOLE), ("n_shared", WHOLE)),
)
_ABLATION = (
    *(("run", TEXT), ("removed", TEXT), ("features", WHOLE), ("density", NUMBER), ("loss", NUMBER)),
    *(("increase", NUMBER), ("low", NUMBER), ("high", NUMBER), ("sequences", WHOLE)),
)


def write_unmatched(path: Path, found: Mapping[str, Sequence[Contrast]]) -> Path:
    """Write properties of orphan and of shared features: a row per run and property.

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    rows = [
        {
            "run": run,
            "property": one.property,
            "orphans": one.orphans.value,
            "shared": one.shared.value,
            "difference": one.difference.value,
            "low": one.difference.low,
            "high": one.difference.high,
            "n_orphans": one.orphans.n,
            "n_shared": one.shared.n,
        }
        for run, contrasts in found.items()
        for one in contrasts
    ]
    return write_csv(path, table_of_rows(rows, _CONTRAST))


def write_ablations(path: Path, found: Mapping[str, Sequence[Ablation]]) -> Path:
    """Write the loss without sets of features: a row per run and set.

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    rows = [
        {
            "run": run,
            "removed": one.removed,
            "features": one.features,
            "density": one.density,
            "loss": one.loss,
            "increase": one.increase.value,
            "low": one.increase.low,
            "high": one.increase.high,
            "sequences": one.increase.n,
        }
        for run, ablations in found.items()
        for one in ablations
    ]
    return write_csv(path, table_of_rows(rows, _ABLATION))


def write_correlation(path: Path, found: Correlation) -> Path:
    """Write the partner of each feature by activations: a row per feature of either SAE.

    Columns: sae, feature, then partner and value by Pearson's correlation and by Jaccard's index of tokens.

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    tables = []
    for sae, pearson, jaccard in (
        ("a", found.pearson[:2], found.jaccard[:2]),
        ("b", found.pearson[2:], found.jaccard[2:]),
    ):
        columns = {"sae": pyarrow.array([sae] * len(pearson[0])), "feature": range(len(pearson[0]))}
        for name, (index, values) in (("pearson", pearson), ("jaccard", jaccard)):
            columns[f"{name}_partner"] = pyarrow.array(index.numpy(), mask=(index < 0).numpy())
            columns[name] = pyarrow.array(values.numpy(), from_pandas=True)
        tables.append(pyarrow.table(columns))
    return write_parquet(path, pyarrow.concat_tables(tables))
