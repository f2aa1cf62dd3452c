"""Files of a comparison: tables as CSV and Parquet, and its two figures."""

import dataclasses
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import csv

from sae_sweep.analysis import Comparison, KeyContrast, KeySummary, PairRow
from sae_sweep.report.answer import answer, write_answer
from sae_sweep.report.comparison_figures import clustered, cosine_figure, matrix_figure
from sae_sweep.report.heat_map import write_heat_map
from sae_sweep.report.nearest_files import write_nearest
from sae_sweep.report.parquet import plain_column, write_parquet
from sae_sweep.report.style import save
from sae_sweep.store import write_bytes

_TYPES = {
    str: pyarrow.string(),
    bool: pyarrow.bool_(),
    int: pyarrow.int64(),
    float: pyarrow.float64(),
    int | None: pyarrow.int64(),
    float | None: pyarrow.float64(),
    tuple[str, ...]: pyarrow.string(),
}
"""Column types, set even for a table without rows and a column without values."""


class ComparisonFiles(NamedTuple):
    """Files of a comparison."""

    answer: Path
    """JSON: the SAEs that were compared, and what each swept key moves (`Answer`)."""
    pairs_csv: Path
    """One row per pair of SAEs: the fields of `PairRow`, then `KEY_a` and `KEY_b` for each swept key."""
    pairs_parquet: Path
    matrix_csv: Path
    """One row and one column per SAE: share of the row's features that have a match in the column.

    If an SAE is mixed, a last column `mixed` says which.
    """
    matrix_parquet: Path
    keys_csv: Path
    """One row per swept key: the fields of `KeySummary` except the histogram."""
    contrasts_csv: Path
    """One row for every two swept keys: the fields of `KeyContrast`."""
    matrix_figure: Path
    """The matrix, SAEs that share the most beside each other."""
    cosine_figure: Path
    matrix_page: Path
    """The same as a page of HTML."""
    nearest: Path
    """Folder with a Parquet file per SAE: the nearest feature of each other SAE for each of its features."""


def write_comparison(folder: Path, comparison: Comparison) -> ComparisonFiles:
    """Write tables and figures into `folder`, the sweep's `analysis/matching/`.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    pairs, ordered = _pairs_table(comparison), clustered(comparison)
    matrix = _matrix_table(comparison)
    return ComparisonFiles(
        answer=write_answer(folder / "answer.json", answer(comparison)),
        pairs_csv=write_csv(folder / "pairs.csv", pairs),
        pairs_parquet=write_parquet(folder / "pairs.parquet", pairs),
        matrix_csv=write_csv(folder / "matrix.csv", matrix),
        matrix_parquet=write_parquet(folder / "matrix.parquet", matrix),
        keys_csv=write_csv(folder / "keys.csv", table_of(KeySummary, comparison.summaries, {"histogram"})),
        contrasts_csv=write_csv(folder / "contrasts.csv", table_of(KeyContrast, comparison.contrasts)),
        matrix_figure=save(matrix_figure(ordered), folder / "matrix.png"),
        cosine_figure=save(cosine_figure(comparison), folder / "cosines.png"),
        matrix_page=write_heat_map(folder / "matrix.html", ordered),
        nearest=write_nearest(folder / "nearest", comparison),
    )


def table_of(kind: type, rows: Sequence[Any], left_out: set[str] | None = None) -> pyarrow.Table:
    """Dataclasses as a table; the words of a tuple are joined by `+`."""
    fields = [field for field in dataclasses.fields(kind) if field.name not in (left_out or ())]
    schema = pyarrow.schema([(field.name, _TYPES[field.type]) for field in fields])  # type: ignore[index]
    records = [{field.name: _cell(getattr(row, field.name)) for field in fields} for row in rows]
    return pyarrow.Table.from_pylist(records, schema=schema)


def _cell(value: Any) -> Any:
    return "+".join(value) if isinstance(value, tuple) else value


def _pairs_table(comparison: Comparison) -> pyarrow.Table:
    """The pairs, with the values that the swept keys have in both runs."""
    table = table_of(PairRow, comparison.rows)
    keys_of = dict(zip(comparison.names, comparison.keys, strict=True))
    for key in dict.fromkeys(key for keys in comparison.keys for key in keys):
        for side in ("a", "b"):
            runs = [getattr(row, side) for row in comparison.rows]
            table = table.append_column(
                f"{key}_{side}", plain_column([keys_of.get(run, {}).get(key) for run in runs])
            )
    return table


def _matrix_table(comparison: Comparison) -> pyarrow.Table:
    """The diagonal and pairs that were not compared stay empty."""
    columns: dict[str, Any] = {"features_of": pyarrow.array(comparison.names, pyarrow.string())}
    for name, column in zip(comparison.names, comparison.ratios.T, strict=True):
        columns[name] = pyarrow.array(column, pyarrow.float64(), from_pandas=True)  # NaN becomes null
    if any(comparison.mixed):
        columns["mixed"] = pyarrow.array(comparison.mixed, pyarrow.bool_())
    return pyarrow.table(columns)


def write_csv(path: Path, table: pyarrow.Table) -> Path:
    """Write a table as CSV: null is an empty cell, a bool is True or False.

    Raises:
        SaeSweepError: if the file cannot be written; none is left incomplete.
    """
    plain = pyarrow.table([_capitalised(column) for column in table.columns], names=table.column_names)
    content = BytesIO()
    csv.write_csv(plain, content)
    write_bytes(path, content.getvalue())
    return path


def _capitalised(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray | pyarrow.Array:
    """A column of bools as True and False, where pyarrow has true and false; others as they are."""
    if not pyarrow.types.is_boolean(column.type):
        return column
    return pyarrow.array(
        [None if value is None else str(value) for value in column.to_pylist()], pyarrow.string()
    )
