"""Measures of pairs of SAEs on disk: tables of pairs, of keys, and of threshold curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from sae_sweep.analysis.key_measures import DENSITY_EDGES, KeyCurve, KeyRates
from sae_sweep.analysis.measured import Measured
from sae_sweep.analysis.measures import Measure
from sae_sweep.report.files import write_csv
from sae_sweep.report.parquet import write_parquet

TEXT, NUMBER, WHOLE = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
_MEASURE = (
    *(("chance", TEXT), ("measure", TEXT), ("direction", TEXT)),
    *(("value", NUMBER), ("low", NUMBER), ("high", NUMBER)),
    *(("null", NUMBER), ("null_low", NUMBER), ("null_high", NUMBER)),
    *(("difference", NUMBER), ("difference_low", NUMBER)),
    *(("difference_high", NUMBER), ("n", WHOLE)),
)
_PAIR = (
    *(("a", TEXT), ("b", TEXT), ("varied", TEXT)),
    *(("features", TEXT), ("undertrained", pyarrow.bool_())),
)
_KEY = (
    *(("key", TEXT), ("features", TEXT)),
    *(("pairs", WHOLE), ("undertrained", WHOLE)),
)
_SEEDS = (("seed_low", NUMBER), ("seed_high", NUMBER))
_CURVE = (
    *(("key", TEXT), ("features", TEXT), ("chance", TEXT)),
    *(("threshold", NUMBER), ("share", NUMBER)),
    *(("low", NUMBER), ("high", NUMBER)),
)


_RATE = (
    *(("key", TEXT), ("log10_density_from", NUMBER), ("log10_density_to", NUMBER)),
    *(("features", NUMBER), ("matched", NUMBER), ("low", NUMBER), ("high", NUMBER)),
)
_TRUTH = (
    *(("run", TEXT), ("features", TEXT), ("measure", TEXT)),
    *(("of", TEXT), ("value", NUMBER), ("low", NUMBER)),
    *(("high", NUMBER), ("n", WHOLE)),
)


class MeasureFiles(NamedTuple):
    """Files of the measures of pairs."""

    pairs: Path
    """Parquet, a row per pair, kind of features, null, measure and direction."""
    keys: Path
    """CSV, the same averaged over the pairs that differ in one key alone."""
    curves: Path
    """Parquet, a row per key, kind of features and threshold: share of features with a match. A row with
    `chance` is of that null; without, of the SAEs."""
    rates: Path
    """Parquet, a row per key and bin of log10 density: the share of features in it, and the share of those
    that have a mutual match."""


def write_measures(folder: Path, found: Measured) -> MeasureFiles:
    """Write what was measured into `folder`, the sweep's `analysis/matching/`.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    pairs = [
        {
            "a": one.a,
            "b": one.b,
            "varied": "+".join(one.varied),
            "features": one.features,
            "undertrained": one.undertrained,
            **_numbers(one.chance, one.measure),
        }
        for one in found.pairs
    ]
    keys = [
        {
            "key": one.key,
            "features": one.features,
            "pairs": one.pairs,
            "undertrained": one.undertrained,
            **_numbers(one.chance, one.measure),
            "seed_low": one.over_seeds.low,
            "seed_high": one.over_seeds.high,
        }
        for one in found.keys
    ]
    curves = [row for one in found.curves for row in _curve_rows(one)]
    return MeasureFiles(
        write_parquet(folder / "measures.parquet", table_of_rows(pairs, _PAIR + _MEASURE)),
        write_csv(folder / "measures_by_key.csv", table_of_rows(keys, _KEY + _MEASURE + _SEEDS)),
        write_parquet(folder / "curves.parquet", table_of_rows(curves, _CURVE)),
        write_parquet(folder / "rates.parquet", table_of_rows(_rate_rows(found.rates), _RATE)),
    )


def write_truth(path: Path, found: Measured) -> Path:
    """Write how SAEs match the true features of synthetic activations: a row per SAE, measure and side.

    `of` is `true features` (the share of them that the SAE found) or `its features` (those that are true).

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    sides = {"a_in_b": "its features", "b_in_a": "true features"}
    rows = [
        {
            "run": one.a,
            "features": one.features,
            "measure": one.measure.measure,
            "of": sides[one.measure.direction],
            "value": one.measure.found.value,
            "low": one.measure.found.low,
            "high": one.measure.found.high,
            "n": one.measure.found.n,
        }
        for one in found.pairs
    ]
    return write_csv(path, table_of_rows(rows, _TRUTH))


def table_of_rows(
    rows: list[dict[str, Any]], columns: tuple[tuple[str, pyarrow.DataType], ...]
) -> pyarrow.Table:
    """Rows as a table in which NaN is null."""
    plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    return pyarrow.Table.from_pylist(plain, schema=pyarrow.schema(columns))


def _numbers(chance: str, measure: Measure) -> dict[str, Any]:
    found, null, difference = measure.found, measure.null, measure.difference
    return {
        "chance": chance,
        "measure": measure.measure,
        "direction": measure.direction,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "null": null.value,
        "null_low": null.low,
        "null_high": null.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "n": found.n,
    }


def _rate_rows(found: Sequence[KeyRates]) -> list[dict[str, Any]]:
    return [
        {
            "key": one.key,
            "log10_density_from": start,
            "log10_density_to": end,
            "features": features,
            "matched": matched,
            "low": low,
            "high": high,
        }
        for one in found
        for start, end, features, matched, low, high in zip(
            DENSITY_EDGES[:-1],
            DENSITY_EDGES[1:],
            *(part.tolist() for part in (one.features, one.matched, one.low, one.high)),
            strict=True,
        )
    ]


def _curve_rows(one: KeyCurve) -> Iterator[dict[str, Any]]:
    for chance, curve in {"": one.found, **one.nulls}.items():
        parts = zip(*(part.tolist() for part in curve), strict=True)
        for threshold, share, low, high in parts:
            yield {
                "key": one.key,
                "features": one.features,
                "chance": chance,
                "threshold": round(threshold, 2),
                "share": share,
                "low": low,
                "high": high,
            }
