"""Sends the comparison of a sweep to W&B."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.analysis import COSINE_EDGES, Comparison, PairRow
from sae_sweep.config import CommandConfig
from sae_sweep.report import ComparisonFiles, RunLine
from sae_sweep.report.formatting import short_labels
from sae_sweep.store import SweepFolder
from sae_sweep.tracking import open_comparison_sink, wandb_key

_HEADS = ("run", "name", "state")


def track_comparison(
    folder: SweepFolder,
    command: CommandConfig,
    comparison: Comparison,
    files: ComparisonFiles,
    lines: Sequence[RunLine],
) -> None:
    """Send tables of runs, pairs and the matrix, the figures, and how many features match by key."""
    names = comparison.names
    sink = open_comparison_sink(folder, command, names, swept=comparison.keys)
    sink.table("runs/metrics", *_runs(comparison, lines))
    columns = [field.name for field in dataclasses.fields(PairRow)]
    pairs = [[_cell(getattr(row, column)) for column in columns] for row in comparison.rows]
    sink.table("matching/pairs", columns, pairs)
    labels = short_labels(names, comparison.keys)
    shares = [[label, *map(_share, row)] for label, row in zip(labels, comparison.ratios, strict=True)]
    sink.table("matching/shares", ["features of", *labels], shares)
    sink.html("matching/heat_map", files.matrix_page)
    sink.image("matching/matrix", files.matrix_figure)
    sink.image("matching/cosines", files.cosine_figure)
    sink.histogram("matching/top1_cosine", comparison.histogram, list(COSINE_EDGES))
    sink.summary({f"matched/{wandb_key(one.key)}": one.ratio for one in comparison.summaries if one.trained})
    sink.finish()


def _runs(comparison: Comparison, lines: Sequence[RunLine]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of all runs: swept keys, which only compared runs have, and metrics."""
    keys = dict(zip(comparison.names, comparison.keys, strict=True))
    labels = dict(zip(comparison.names, short_labels(comparison.names, comparison.keys), strict=True))
    swept = list(dict.fromkeys(key for own in keys.values() for key in own))
    metrics = list(dict.fromkeys(key for line in lines for key in line.metrics))
    rows = []
    for line in lines:
        own: Mapping[str, Any] = keys.get(line.name, {})
        head = [labels.get(line.name, line.name), line.name, line.status]
        rows.append([*head, *(own.get(key) for key in swept), *(line.metrics.get(key) for key in metrics)])
    columns = [*_HEADS, *swept, *(f"eval/{key}" for key in metrics)]
    return columns, _one_type_per_column(rows)


def _one_type_per_column(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows, with the columns that hold more than one type as text: a table of W&B refuses them."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns:
        kinds = {_kind(value) for value in column if value is not None}
        if len(kinds) > 1 or kinds - {bool, float, str}:
            column[:] = [None if value is None else str(value) for value in column]
    return [list(row) for row in zip(*columns, strict=True)]


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _share(value: float) -> float | None:
    return None if value != value else float(value)  # NaN: the two were not compared


def _cell(value: Any) -> Any:
    return " + ".join(value) if isinstance(value, tuple) else value
