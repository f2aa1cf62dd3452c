"""Families on the page: what they depend on, by hook, and which family each feature is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from sae_sweep.config import SaeSweepError
from sae_sweep.report.page.runs import Runs
from sae_sweep.report.parquet import read_parquet
from sae_sweep.store import is_present

_REMEDY = "follow the features again with task=match"
_FILES = ("families", "members", "stability", "orphans")


class Family(NamedTuple):
    """The families of one hook."""

    label: str
    """`L8`; empty if the sweep has one hook."""
    folder: Path
    tables: Mapping[str, pyarrow.Table]
    """By the names of the files."""


class Members(NamedTuple):
    """The families of all hooks, numbered one after the other."""

    runs: np.ndarray
    """Position of each member's run."""
    features: np.ndarray
    starts: np.ndarray
    """[families + 1]: where the members of each family begin."""
    kinds: list[list[str]]
    """What each family depends on, in words."""
    followed: set[int]
    """Positions of the runs whose features were followed."""
    stability: Mapping[int, np.ndarray]
    """By position of a run: for each feature the share of the other seeds that hold it."""


def read_families(runs: Runs, problems: list[str]) -> list[Family]:
    """Read the families of each hook; a damaged file is named among `problems`."""
    root = runs.folder.families
    folders = [root] if is_present(root / "families.parquet") else sorted(path for path in root.glob("*/"))
    found = []
    for folder in folders:
        try:
            tables = {name: read_parquet(folder / f"{name}.parquet", None, _REMEDY) for name in _FILES}
        except SaeSweepError as error:
            problems.append(str(error))
            continue
        found.append(Family("" if folder == root else folder.name, folder, tables))
    return found


def section(families: list[Family], problems: list[str]) -> list[dict[str, Any]]:
    """For each hook: how many families there are, of which kinds, and in how many SAEs."""
    return [
        {
            "label": one.label,
            "families": one.tables["families"].num_rows,
            "members": one.tables["members"].num_rows,
            "alone": one.tables["orphans"].num_rows,
            "kinds": _rows(one.folder / "kinds.parquet", problems),
            "counts": _rows(one.folder / "by_number_of_saes.parquet", problems),
        }
        for one in families
    ]


def members(runs: Runs, families: list[Family]) -> Members:
    """The members of all families; those of runs that are not in the sweep any more are left out."""
    places = {name: place for place, name in enumerate(runs.names)}
    of, run, feature = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0, int)]
    kinds: list[list[str]] = []
    stability: dict[int, np.ndarray] = {}
    followed: set[int] = set()
    for one in families:
        table = one.tables["members"]
        run.append(np.array([places.get(name, -1) for name in table["run"].to_pylist()], dtype=int))
        of.append(table["family"].to_numpy().astype(int) + len(kinds))
        feature.append(table["feature"].to_numpy().astype(int))
        kinds += one.tables["families"]["kinds"].to_pylist()
        stability |= _stability(one.tables["stability"], places)
        names = {*one.tables["members"]["run"].to_pylist(), *one.tables["orphans"]["run"].to_pylist()}
        followed |= {places[name] for name in names if name in places}
    family, in_run, number = (np.concatenate(each) for each in (of, run, feature))
    kept = in_run >= 0
    order = np.argsort(family[kept], kind="stable")
    starts = np.searchsorted(family[kept][order], np.arange(len(kinds) + 1))
    return Members(in_run[kept][order], number[kept][order], starts, kinds, followed, stability)


def _stability(table: pyarrow.Table, places: Mapping[str, int]) -> dict[int, np.ndarray]:
    names = np.array(table["run"].to_pylist())
    features, shares = table["feature"].to_numpy(), table["share"].to_numpy()
    found = {}
    for name in dict.fromkeys(names.tolist()):
        if name in places:
            here = names == name
            values = np.full(int(features[here].max()) + 1, np.nan)
            values[features[here]] = shares[here]
            found[places[name]] = values
    return found


def _rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not is_present(path):
        return []
    try:
        return read_parquet(path, None, _REMEDY).to_pylist()
    except SaeSweepError as error:
        problems.append(str(error))
        return []
