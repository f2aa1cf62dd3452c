"""Features and their contexts as an export that Neuronpedia imports: JSON lines, a key per column there.

The folder is that of Neuronpedia's own exports: `MODEL/SOURCE/` with four files of one line that describe the
source, and `features/` and `activations/` in batches. Columns that are left out keep the database's default.
"""

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute as pc

from sae_sweep.report.analysis_files import DECILES, analysis_files, read_analysis
from sae_sweep.store import disk_errors, write_bytes

_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""The account to which Neuronpedia's own tools assign imports."""
_BATCH = 512
"""Features per file."""
_DIGITS = 4
_TOP_BIN = -1
"""`binContains` and `binMin` of the highest activations, which are from no interval."""


class Source(NamedTuple):
    """An SAE, as Neuronpedia names it."""

    model: str
    layers: int
    """Blocks of the model; 0 if unknown."""
    layer: int
    """The one whose input the SAE reads."""
    release: str
    """The sweep; all its SAEs are one set of sources."""
    name: str
    """The SAE's own name."""
    text: str
    """Name of the text that was read."""

    @property
    def id(self) -> str:
        return f"{self.layer}-{self.release}__{self.name}"


def write_neuronpedia(folder: Path, source: Source, features: Path, run_id: str) -> Path:
    """Write what `task=analyse` found about an SAE's features, and return the folder of the source.

    Args:
        folder: will hold `MODEL/SOURCE/`.
        source: the SAE's names.
        features: folder of the analysis.
        run_id: whose it must be.

    Raises:
        SaeSweepError: if a file of the analysis is missing, damaged or another run's, or none can be written.
    """
    files = analysis_files(features)
    statistics, positions, contexts, tokens = (read_analysis(file, run_id) for file in files)
    strings = tokens["string"].to_pylist()
    place = folder / source.model / source.id
    last = place / "source.jsonl"
    with disk_errors(last):
        last.unlink(missing_ok=True)  # while it is missing, the rest is not whole
    for number, (some, found) in enumerate(_batches(statistics, contexts)):
        name = f"batch-{number}.jsonl.gz"
        write_bytes(place / "features" / name, _compressed(_features(source, some, strings)))
        write_bytes(place / "activations" / name, _compressed(_activations(source, found, some, strings)))
    for name, row in _described(source, positions).items():
        write_bytes(place / f"{name}.jsonl", _lines([row]))
    return place


def _batches(
    statistics: pyarrow.Table, contexts: pyarrow.Table
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Some features and all of their contexts, as rows."""
    for start in range(0, statistics.num_rows, _BATCH):
        inside = pc.and_(
            pc.greater_equal(contexts["feature"], start), pc.less(contexts["feature"], start + _BATCH)
        )
        some = contexts.filter(inside).sort_by([(key, "ascending") for key in ("feature", "kind", "rank")])
        yield statistics.slice(start, _BATCH).to_pylist(), some.to_pylist()


def _features(
    source: Source, rows: Iterable[Mapping[str, Any]], strings: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        effects = {}
        for side, key in (("pos", "promoted"), ("neg", "suppressed")):
            effects[f"{side}_str"] = [strings[token] for token in row.get(key) or []]
            effects[f"{side}_values"] = _rounded(row.get(f"{key}_effects") or [])
        yield {
            **_place(source, row["feature"]),
            "sourceSetName": source.release,
            "creatorId": _CREATOR_ID,
            "maxActApprox": _number(row["max"]),
            "frac_nonzero": row["density"],
            **effects,
        }


def _activations(
    source: Source,
    contexts: Iterable[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
    strings: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A row per context, under an id that is the same in every export of the same analysis."""
    by_number = {row["feature"]: row for row in features}
    for row in contexts:
        values = _rounded(row["activations"])
        key = f"{source.model}/{source.id}/{row['feature']}/{row['kind']}/{row['rank']}"
        yield {
            "id": f"c{hashlib.sha256(key.encode()).hexdigest()[:24]}",
            **_place(source, row["feature"]),
            "creatorId": _CREATOR_ID,
            "tokens": [strings[token] for token in row["tokens"]],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "qualifyingTokenIndex": row["at"],
            **_interval(row, by_number[row["feature"]]),
        }


def _interval(context: Mapping[str, Any], feature: Mapping[str, Any]) -> dict[str, float]:
    """The interval of activations from which a context was drawn, and the share that lies in it."""
    if context["kind"] == "top":
        return {"binMin": _TOP_BIN, "binMax": _number(feature["max"]), "binContains": _TOP_BIN}
    edges = [0.0, *(feature[f"decile_{tenth}"] for tenth in range(1, 10)), feature["max"]]
    tenth = context["decile"]
    return {"binMin": edges[tenth - 1], "binMax": edges[tenth], "binContains": DECILES[0]}


def _place(source: Source, feature: int) -> dict[str, str]:
    return {"modelId": source.model, "layer": source.id, "index": str(feature)}


def _described(source: Source, positions: pyarrow.Table) -> dict[str, dict[str, Any]]:
    """The one row of each table above the features, by file name; the source itself comes last."""
    unchanged = positions.filter(pc.equal(positions["positions"], "none"))
    shared = {"creatorId": _CREATOR_ID, "visibility": "PUBLIC"}
    creator = {"creatorName": "sae_sweep", "description": f"SAEs of the sweep {source.release}"}
    return {
        "release": {"name": source.release, **shared, **creator},
        "model": {
            "id": source.model,
            "displayName": source.model,
            "displayNameShort": source.model,
            "layers": source.layers,
            "neuronsPerLayer": 0,
            "owner": "",
            **shared,
        },
        "sourceset": {
            "modelId": source.model,
            "name": source.release,
            "releaseName": source.release,
            **shared,
            **creator,
        },
        "source": {
            "id": source.id,
            "modelId": source.model,
            "setName": source.release,
            "dataset": source.text,
            "num_prompts": max(unchanged["tokens"].to_pylist()),
            "num_tokens_in_prompt": unchanged.num_rows,
            **shared,
        },
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]


def _number(value: float | None) -> float:
    """A number that JSON has; 0 for what is undefined of a feature that never fires."""
    return value if value is not None and math.isfinite(value) else 0.0


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def _compressed(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return gzip.compress(_lines(rows), compresslevel=5, mtime=0)
