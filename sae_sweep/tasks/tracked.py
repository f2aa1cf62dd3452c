"""Sends the comparison of a sweep, and the sections that other tasks add to its page, to W&B."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_sweep.analysis import COSINE_EDGES, Comparison, PairRow
from sae_sweep.analysis.family_keys import KeyRow
from sae_sweep.config import CommandConfig, digest
from sae_sweep.config.tracking import TAG_LENGTH
from sae_sweep.report import ComparisonFiles, RunLine
from sae_sweep.report.formatting import short_labels
from sae_sweep.report.page.sections import read_section
from sae_sweep.store import SweepFolder
from sae_sweep.tasks.followed import Followed
from sae_sweep.tracking import ComparisonSink, open_comparison_sink, wandb_key

_HEADS = ("run", "name", "state")
_LONGEST_KEY = 100
"""W&B names the artifact of a table by the run's id and the key, in 128 characters."""


def track_comparison(
    folder: SweepFolder,
    command: CommandConfig,
    comparison: Comparison,
    files: ComparisonFiles,
    lines: Sequence[RunLine],
    followed: Followed | None = None,
) -> None:
    """Send tables of runs, pairs, the matrix, measures and families, the figures, and numbers by key."""
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
    if followed is not None:
        _send_followed(sink, followed)
    sink.finish()


def track_section(
    folder: SweepFolder, command: CommandConfig, place: Path, numbers: Mapping[str, float]
) -> None:
    """Send a section of the page as a W&B run of its own: its tables and figures, and numbers by name.

    Args:
        folder: the sweep.
        command: says whether and where W&B is.
        place: folder below `analysis/` that holds the section; its name is that of the W&B run.
        numbers: of the summary; those that are undefined are left out.
    """
    section, part = read_section(place), place.name
    sink = open_comparison_sink(folder, command, section.runs, what=part[:TAG_LENGTH])
    for table in section.tables:
        sink.table(_key(part, table.title), table.columns, _one_type_per_column(table.rows))
    for name in section.figures:
        sink.image(_key(part, Path(name).stem), place / name)
    sink.summary({_key(part, name): value for name, value in numbers.items() if value == value})
    sink.finish()


def _key(part: str, name: str) -> str:
    """A key of W&B, in whose panels each section of the page is one; a slash in `name` is a level more.

    One that is too long for the artifact of a table is cut, and a digest of the whole tells it from others.
    """
    plain = re.sub(r"[^\w./+-]+", "_", name).strip("_")
    key = f"analysis/{part}/{plain}"
    return key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 13]}_{digest(key)}"


def _send_followed(sink: ComparisonSink, followed: Followed) -> None:
    """Measures by key, and families of each hook: tables, figures, and the share that one value has alone."""
    rows = [(row.key, row.pairs, row.features, row.chance, row.measure) for row in followed.measured.keys]
    columns = ["key", "pairs", "features", "null is", "measure", "value", "low", "high", "null"]
    cells = []
    for *head, one in rows:
        numbers = (one.found.value, one.found.low, one.found.high, one.null.value)
        cells.append([*head, one.measure, *map(_share, numbers)])
    sink.table("matching/measures", columns, cells)
    for name, path in followed.figures.items():
        sink.image(f"matching/{name}", path)
    names = [field.name for field in dataclasses.fields(KeyRow)]
    for hook in followed.hooks:
        part = f"families/{hook.label}".rstrip("/")
        kinds = [[_known(getattr(row, name)) for name in names] for row in hook.results.rows]
        sink.table(f"{part}/kinds", names, kinds)
        for name, path in hook.figures.items():
            sink.image(f"{part}/{name}", path)
        only = {row.key: row for row in hook.results.rows if row.kind == "only" and not row.value}
        universal = next(row.share for row in hook.results.rows if row.kind == "universal")
        shares = {f"{part}/only one {wandb_key(key)}": row.share for key, row in only.items()}
        shares[f"{part}/universal"] = universal
        sink.summary({name: share for name, share in shares.items() if share == share})


def _known(value: Any) -> Any:
    return None if value != value else value  # NaN


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
