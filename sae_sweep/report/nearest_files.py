"""Nearest features on disk: a Parquet file per SAE of a comparison, with a row per other SAE."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow

from sae_sweep.analysis import Comparison
from sae_sweep.analysis.pairs import Nearest
from sae_sweep.report.parquet import read_parquet, write_parquet

_REMEDY = "compare the SAEs again with task=match"
_SCHEMA = pyarrow.schema(
    [
        ("other", pyarrow.string()),
        ("feature", pyarrow.list_(pyarrow.int32())),
        ("cosine", pyarrow.list_(pyarrow.float32())),
    ]
)


def write_nearest(folder: Path, comparison: Comparison) -> Path:
    """Write `NAME.parquet` for each SAE, and remove those of SAEs that are not in the comparison.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    for name in comparison.names:
        rows = [(b, one) for (a, b), one in comparison.nearest.items() if a == name]
        columns = [
            [b for b, _ in rows],
            [one.feature for _, one in rows],
            [one.cosine for _, one in rows],
        ]
        write_parquet(folder / f"{name}.parquet", pyarrow.table(columns, schema=_SCHEMA))
    for file in folder.glob("*.parquet"):
        if file.stem not in comparison.names:
            file.unlink(missing_ok=True)
    return folder


def read_nearest(folder: Path, name: str) -> Mapping[str, Nearest]:
    """Read the nearest features of one SAE, by the name of the other SAE.

    Raises:
        SaeSweepError: one line with the file and the remedy, if it is missing or damaged.
    """
    table = read_parquet(folder / f"{name}.parquet", _SCHEMA.names, _REMEDY)
    lists = [table[column].combine_chunks() for column in _SCHEMA.names[1:]]
    return {
        other: Nearest(*(np.asarray(column[row].values) for column in lists))
        for row, other in enumerate(table["other"].to_pylist())
    }
