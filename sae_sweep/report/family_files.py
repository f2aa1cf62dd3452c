"""Families on disk: tables of families, members, kinds, counts, stability and subspaces."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from safetensors.torch import save

from sae_sweep.analysis.families import Families
from sae_sweep.analysis.family_keys import KeyRow, Kind, accumulation, by_number_of_runs
from sae_sweep.analysis.family_results import FamilyResults
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.report.files import table_of, write_csv
from sae_sweep.report.parquet import write_parquet
from sae_sweep.store import write_bytes, write_json


class FamilyFiles(NamedTuple):
    """Files about the families of one hook."""

    families: Path
    """Parquet, a row per family, the largest first: size, kinds, mean cosine, density, activation."""
    members: Path
    """Parquet, a row per member: family, run, feature, density, mean_activation."""
    presence: Path
    """Safetensors: `presence` [families, runs], whether each run has a member; its metadata name the runs."""
    kinds: Path
    """CSV, a row per kind of families: the fields of `KeyRow`."""
    kinds_parquet: Path
    counts: Path
    """CSV, a row per number of runs: features in exactly so many, and distinct ones in so many together."""
    stability: Path
    """Parquet, a row per feature of each SAE that has other seeds: the share of them that hold it."""
    orphans: Path
    """Parquet, a row per feature in no family: run, feature, density, and the nearest feature of any other
    run (nearest_run, nearest_feature, cosine)."""
    subspaces: Path
    """CSV, a row per pair of seeds: how far the spans of the features that no other seed holds coincide."""
    runs: Path
    """JSON: features of each run that could be matched, and those in no family; runs that are left out."""


def write_families(folder: Path, results: FamilyResults, entries: Sequence[ComparisonEntry]) -> FamilyFiles:
    """Write what was found about families into `folder`, the sweep's `analysis/families/`.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    found = results.families
    members = _members(found, {entry.name: entry for entry in entries})
    kinds = table_of(KeyRow, results.rows)
    return FamilyFiles(
        families=write_parquet(folder / "families.parquet", _families(found, results.kinds, members)),
        members=write_parquet(folder / "members.parquet", members),
        presence=_write_presence(folder / "presence.safetensors", found),
        kinds=write_csv(folder / "kinds.csv", kinds),
        kinds_parquet=write_parquet(folder / "kinds.parquet", kinds),
        counts=write_csv(folder / "counts.csv", _counts(found)),
        stability=write_parquet(folder / "stability.parquet", _stability(results)),
        orphans=write_parquet(folder / "orphans.parquet", _orphans(found, entries)),
        subspaces=write_csv(folder / "subspaces.csv", _subspaces(results)),
        runs=_write_runs(folder / "runs.json", found),
    )


def kind_label(kind: Kind) -> str:
    """`universal`, `common to all of dataset`, `only dataset owt`."""
    if not kind.key:
        return kind.kind
    if kind.kind == "common":
        return f"common to all of {kind.key}"
    return f"only {kind.key} {kind.value}".strip()


def _members(found: Families, entries: Mapping[str, ComparisonEntry]) -> pyarrow.Table:
    count = len(found.member_runs)
    density, activation = np.full(count, np.nan), np.full(count, np.nan)
    for run, name in enumerate(found.runs):
        here, entry = (found.member_runs == run).numpy(), entries[name]
        features = found.member_features[found.member_runs == run]
        if entry.densities is not None:
            density[here] = entry.densities.cpu()[features].numpy()
        if entry.mean_activations is not None:
            activation[here] = entry.mean_activations.cpu()[features].numpy()
    family = torch.arange(len(found.sizes)).repeat_interleave(found.sizes)
    runs = pyarrow.array(found.runs, pyarrow.string())
    return pyarrow.table(
        {
            "family": family.numpy().astype(np.int32),
            "run": runs.take(pyarrow.array(found.member_runs.numpy())),
            "feature": found.member_features.numpy().astype(np.int32),
            "density": pyarrow.array(density, from_pandas=True),
            "mean_activation": pyarrow.array(activation, from_pandas=True),
        }
    )


def _families(found: Families, kinds: Sequence[Kind], members: pyarrow.Table) -> pyarrow.Table:
    labels: list[list[str]] = [[] for _ in found.sizes]
    for kind in kinds:
        if kind.kind == "only" and not kind.value:
            continue  # its values say the same
        for family in kind.families.nonzero()[:, 0].tolist():
            labels[family].append(kind_label(kind))
    of = members["family"].to_numpy()
    return pyarrow.table(
        {
            "family": np.arange(len(labels), dtype=np.int32),
            "runs": found.sizes.numpy().astype(np.int32),
            "kinds": pyarrow.array(labels, pyarrow.list_(pyarrow.string())),
            "mean_cosine": found.mean_cosine.numpy(),
            "density": _mean_by(of, members["density"], len(labels)),
            "mean_activation": _mean_by(of, members["mean_activation"], len(labels)),
        }
    )


def _mean_by(of: np.ndarray, column: pyarrow.ChunkedArray, count: int) -> pyarrow.Array:
    """Mean over the members of each family whose value is known."""
    values = column.to_numpy()
    known = ~np.isnan(values)
    sums = np.bincount(of[known], values[known], minlength=count)
    with np.errstate(invalid="ignore"):
        return pyarrow.array(sums / np.bincount(of[known], minlength=count), from_pandas=True)


def _write_presence(path: Path, found: Families) -> Path:
    named = {f"run_{number}": name for number, name in enumerate(found.runs)}
    tensors = {"presence": found.presence.to(torch.uint8), "mean_cosine": found.mean_cosine.contiguous()}
    write_bytes(path, save(tensors, named))
    return path


def _counts(found: Families) -> pyarrow.Table:
    counts = by_number_of_runs(found)[1:]
    return pyarrow.table(
        {
            "runs": np.arange(1, len(counts) + 1),
            "features_in_exactly": counts.numpy(),
            "distinct_features_together": accumulation(found).numpy(),
        }
    )


def _stability(results: FamilyResults) -> pyarrow.Table:
    schema = pyarrow.schema(
        [
            ("run", pyarrow.string()),
            ("feature", pyarrow.int32()),
            ("share", pyarrow.float32()),
            ("seeds", pyarrow.int32()),
        ]
    )
    parts = [
        pyarrow.table(
            {
                "run": [one.name] * len(one.share),
                "feature": np.arange(len(one.share), dtype=np.int32),
                "share": pyarrow.array(one.share.numpy(), from_pandas=True),
                "seeds": np.full(len(one.share), len(one.others), dtype=np.int32),
            }
        ).cast(schema)
        for one in results.stability
    ]
    return pyarrow.concat_tables([schema.empty_table(), *parts])


def _orphans(found: Families, entries: Sequence[ComparisonEntry]) -> pyarrow.Table:
    densities = {entry.name: entry.densities for entry in entries}
    runs = pyarrow.array(found.runs, pyarrow.string())
    parts = []
    for number, (name, one) in enumerate(zip(found.runs, found.candidates, strict=True)):
        members = found.member_features[found.member_runs == number]
        alone = ~torch.isin(one.features, members)
        features, known = one.features[alone], densities[name]
        density = torch.full((len(features),), torch.nan) if known is None else known.cpu()[features]
        there = (one.runs[alone] >= 0).numpy()
        columns = {
            "run": pyarrow.array([name] * len(features), pyarrow.string()),
            "feature": features.numpy().astype(np.int32),
            "density": pyarrow.array(density.double().numpy(), from_pandas=True),
            "nearest_run": runs.take(pyarrow.array(one.runs[alone].numpy(), mask=~there)),
            "nearest_feature": pyarrow.array(one.nearest[alone].numpy().astype(np.int32), mask=~there),
            "cosine": pyarrow.array(one.cosines[alone].numpy(), mask=~there),
        }
        parts.append(pyarrow.table(columns))
    return pyarrow.concat_tables(parts)


def _subspaces(results: FamilyResults) -> pyarrow.Table:
    rows: list[dict[str, Any]] = []
    for one in results.subspaces:
        numbers = dataclasses.asdict(one.found)
        del numbers["angles"]
        angles = one.found.angles
        rows.append(
            {"a": one.a, "b": one.b, "n_a": one.n_a, "n_b": one.n_b, **numbers}
            | {"median_angle": angles.median().item() if len(angles) else None}
        )
    if rows:
        return pyarrow.Table.from_pylist(rows)
    return pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in ("a", "b")})


def _write_runs(path: Path, found: Families) -> Path:
    parts = zip(found.runs, found.nodes, found.orphans, found.left_out, strict=True)
    write_json(
        path,
        {
            "threshold": found.threshold,
            "runs": {
                name: {"features": nodes, "in_no_family": orphans, "left_out": left_out}
                for name, nodes, orphans, left_out in parts
            },
            "undertrained": list(found.undertrained),
        },
    )
    return path
