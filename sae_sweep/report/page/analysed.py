"""What is known of the features of each run: their statistics, and what `task=analyse` found."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.config import SaeSweepError
from sae_sweep.report.analysis_files import analysis_files, analysis_owner, read_analysis
from sae_sweep.report.features import read_statistics
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.pack import Strings
from sae_sweep.report.page.runs import Runs
from sae_sweep.store import unreadable

_REMEDY = "run task=analyse again"
_LISTED = ("density", "max_activation")
"""Columns of a run's statistics that the page needs."""
_FOUND = {
    *("active", "mean", "max", "position_share", "tokens_by_mean", "token_means"),
    *(f"decile_{tenth}" for tenth in range(1, 10)),
}
"""Columns of an analysis that the page needs."""
_TOKEN_LISTS = ("tokens_by_mean", "promoted", "suppressed")
_CONTEXTS = ("feature", "kind", "rank", "at", "decile", "tokens", "activations")


class Statistics(NamedTuple):
    """Statistics of all features of the finished runs, one run after the other."""

    starts: np.ndarray
    """[runs + 1]: where the features of each run begin; none are there of a run whose file is damaged."""
    density: np.ndarray
    """[features]: share of held-out tokens on which each fires."""
    largest: np.ndarray
    """[features]: largest activation, SAE-input units."""

    def size(self, place: int) -> int:
        """How many features a run has."""
        return int(self.starts[place + 1] - self.starts[place])

    def rows(self, place: int) -> slice:
        """The range of a run's features in these arrays."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def live(self, place: int) -> np.ndarray:
        """Numbers of a run's features that fire."""
        return np.flatnonzero(self.density[self.rows(place)] > 0)


class Analysed(NamedTuple):
    """What `task=analyse` found about the features of a run."""

    folder: Path
    """The run's `features/`."""
    run_id: str
    firing: pyarrow.Table
    vocabulary: np.ndarray
    """Number of each token id's string."""

    def token_lists(self, column: str, width: int) -> np.ndarray:
        """[features, width]: numbers of the strings of a column of token lists; 0 where a list ends.

        All are 0 if the analysis has no such column.
        """
        if column not in self.firing.column_names:
            return np.zeros((self.firing.num_rows, width), dtype=int)
        padded = padded_lists(self.firing[column], width, -1).astype(int)
        return np.where(padded < 0, 0, self.vocabulary[padded.clip(0)])

    def numbers(self, column: str, width: int) -> np.ndarray:
        """[features, width]: a column of lists of numbers; NaN where a list ends or there is no column."""
        if column not in self.firing.column_names:
            return np.full((self.firing.num_rows, width), np.nan, dtype=np.float32)
        return padded_lists(self.firing[column], width, np.nan).astype(np.float32)


def read_all_statistics(runs: Runs, compared: Compared | None, problems: list[str]) -> Statistics:
    """Read the statistics of every finished run; a damaged file is named among `problems`."""
    found: dict[int, pyarrow.Table] = {}
    for place in runs.done():
        folder = runs.folder_of(place).features
        try:
            table = read_statistics(folder, runs.ids[place], _LISTED)
            size = table.num_rows if compared is None else compared.size(place, table.num_rows)
            if size != table.num_rows:
                why = f"{table.num_rows} rows for {size} features"
                raise unreadable(folder / "statistics.parquet", why)
            found[place] = table
        except SaeSweepError as error:
            problems.append(str(error))
    sizes = [found[place].num_rows if place in found else 0 for place in range(len(runs.names))]
    columns = [
        np.concatenate([np.zeros(0), *(found[place][name].to_numpy() for place in sorted(found))])
        for name in _LISTED
    ]
    return Statistics(np.concatenate([[0], np.cumsum(sizes)]), *columns)


def read_analysed(
    runs: Runs, statistics: Statistics, strings: Strings, problems: list[str]
) -> dict[int, Analysed]:
    """Read what was found about features, by position of the run; those never analysed are left out.

    A damaged file, or one that does not fit the others, is named among `problems`.
    """
    known: dict[bytes, np.ndarray] = {}
    found = {}
    for place in runs.done():
        folder, run_id = runs.folder_of(place).features, runs.ids[place]
        try:
            if analysis_owner(folder) == run_id:
                one = _read(folder, run_id, strings, known)
                _check(one, statistics.size(place))
                found[place] = one
        except SaeSweepError as error:
            problems.append(str(error))
    return found


def read_contexts(one: Analysed) -> pyarrow.Table:
    """Read the contexts of a run's features.

    Raises:
        SaeSweepError: one line with the file, if it is damaged or does not fit the others.
    """
    path = analysis_files(one.folder).contexts
    table = read_analysis(path, one.run_id, _CONTEXTS)
    _check_tokens(one, [table["tokens"]])
    if _largest(table["feature"]) >= one.firing.num_rows:
        raise unreadable(path, f"it has a feature beyond the {one.firing.num_rows} of the SAE", _REMEDY)
    return table


def padded_lists(column: pyarrow.ChunkedArray, width: int, filler: float) -> np.ndarray:
    """A column of lists of numbers as [rows, width], with the filler where a list ends."""
    lists = column.combine_chunks()
    lengths = compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    longest = max(width, int(lengths.max(initial=0)))
    inside = np.arange(longest)[None] < lengths[:, None]
    padded = np.full(inside.shape, filler, dtype=float)
    padded[inside] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded[:, :width]


def _read(folder: Path, run_id: str, strings: Strings, known: dict[bytes, np.ndarray]) -> Analysed:
    files = analysis_files(folder)
    table = read_analysis(files.tokens, run_id, ["string"])["string"].combine_chunks()
    key = b"".join(bytes(part) for part in table.buffers() if part is not None)
    if key not in known:
        known[key] = strings.numbers(table.to_pylist())
    firing = read_analysis(files.features, run_id)
    return Analysed(folder, run_id, firing, known[key])


def _check(one: Analysed, size: int) -> None:
    """Raise SaeSweepError if the files of an analysis do not fit each other, or the run's statistics."""
    files = analysis_files(one.folder)
    if missing := _FOUND - set(one.firing.column_names):
        raise unreadable(files.features, f"it has no column {min(missing)}", _REMEDY)
    if one.firing.num_rows != size:
        raise unreadable(files.features, f"{one.firing.num_rows} rows for {size} features", _REMEDY)
    lists = [one.firing[name] for name in _TOKEN_LISTS if name in one.firing.column_names]
    _check_tokens(one, lists)


def _check_tokens(one: Analysed, lists: Sequence[pyarrow.ChunkedArray]) -> None:
    largest = max(_largest(compute.list_flatten(column)) for column in lists)
    if largest >= len(one.vocabulary):
        raise unreadable(analysis_files(one.folder).tokens, f"it ends before token {largest}", _REMEDY)


def _largest(numbers: pyarrow.ChunkedArray) -> int:
    found = compute.max(numbers).as_py()
    return -1 if found is None else int(found)
