"""Results of a sweep in a notebook: `sae_sweep.open_sweep(path)`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from sae_sweep.config import SaeSweepError, expanded, first_line
from sae_sweep.config.pasted import override
from sae_sweep.report.parquet import read_parquet
from sae_sweep.report.runs_table import runs_table
from sae_sweep.report.shortened import short_names
from sae_sweep.store import SweepFolder, read_plan, read_shown_status, shown_state, unreadable
from sae_sweep.tracking.history import HISTORY_REMEDY, curve_points

if TYPE_CHECKING:
    from sae_sweep.saes import SAE


def open_sweep(path: Path | str) -> "Sweep":
    """Open the folder of a sweep, also one that is still training.

    Raises:
        SaeSweepError: if there is no sweep, naming those that are below it.
    """
    root = expanded(str(path)).absolute()
    try:
        if (root / "plan.json").is_file():
            return Sweep(root)
        there = ", ".join(sorted(plan.parent.name for plan in root.glob("*/plan.json")))
        hint = f"; below it there is {there}" if there else ""
        hint = "; it is a run: open the folder above it" if (root / "status.json").is_file() else hint
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise unreadable(root, error) from error
    raise SaeSweepError(f"{root}: no sweep there (no plan.json){hint}")


class Sweep:
    """The results of a sweep on disk; each call reads the files as they are.

    Tables are pandas DataFrames where pandas is installed, else pyarrow Tables.
    """

    def __init__(self, root: Path) -> None:
        self._folder = SweepFolder(root)
        self._records()

    @property
    def path(self) -> Path:
        return self._folder.root

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [record["name"] for record in self._records()]

    @property
    def runs(self) -> Any:
        """One row per run: name, short name, id, state, error, keys, final metrics, mixed."""
        return _shown(runs_table(self._folder))

    def sae(self, name: str) -> "SAE":
        """The trained SAE of a run, given its name, short name or id.

        Raises:
            SaeSweepError: if there is no such run, it is not done, or its files are damaged.
        """
        from sae_sweep.saes import load_sae  # imports torch

        record = self._find(name)
        folder = self._folder.run(record["name"])
        state = shown_state(read_shown_status(folder, record["id"]), folder)
        if state != "done":
            raise SaeSweepError(f"{record['name']} is {state}: it has no SAE (yet); see {folder.log}")
        return load_sae(folder.sae, record["id"])

    def matches(self) -> Any:
        """One row per pair of SAEs, as `analysis/matching/pairs.parquet` has it.

        Raises:
            SaeSweepError: if the sweep was not compared yet, or the file is damaged.
        """
        remedy = f"compare the finished runs with task=match {override('sweep', self.path.name)}"
        return _shown(read_parquet(self._folder.matching / "pairs.parquet", None, remedy))

    def history(self, name: str) -> Any:
        """What was logged of a run while it trained: one row per number of tokens.

        Raises:
            SaeSweepError: if there is no such run, or its history is damaged.
        """
        path = self._folder.run(self._find(name)["name"]).history
        points = curve_points(path)
        columns = dict.fromkeys(key for point in points for key in point)
        try:
            table = pyarrow.table({key: [one.get(key) for one in points] for key in columns})
        except (ValueError, TypeError) as error:  # a number in one line, a text in another
            raise unreadable(path, f"a line is no record ({first_line(error)})", HISTORY_REMEDY) from error
        return _shown(table)

    def _records(self) -> list[Mapping[str, Any]]:
        return list(read_plan(self._folder)["runs"])

    def _find(self, name: str) -> Mapping[str, Any]:
        records = self._records()
        for record, short in zip(records, short_names(records), strict=True):
            if name in (record["name"], record["id"], short):
                return record
        raise SaeSweepError(f"no run {name!r} in {self.path}; there is {', '.join(self.names)}")

    def __repr__(self) -> str:
        states = Counter(runs_table(self._folder)["state"].to_pylist())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        return f"<Sweep {self.path.name}: {counts or 'no runs'}>"


def _shown(table: pyarrow.Table) -> Any:
    """A pandas DataFrame, or the Arrow table where pandas is not installed."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        return table
    return table.to_pandas()
