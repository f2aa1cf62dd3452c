"""The list of all features on the page: how often each fires, on what, and which other SAEs have it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.config import SaeSweepError
from sae_sweep.report.analysis_files import analysis_files, analysis_owner, read_analysis
from sae_sweep.report.features import read_statistics
from sae_sweep.report.page.families import Members
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.pack import Strings, columns, shares, smallest
from sae_sweep.report.page.runs import Runs
from sae_sweep.store import unreadable

NEVER = 2**16 - 1
"""Stored density of a feature that never fires."""
LOG_STEPS = 9000
"""Steps per power of ten of a stored density or activation, which counts down from the largest."""
_LARGEST = 1e4
"""Largest activation that can be stored."""
_LISTED = ("density", "max_activation")
"""Columns of a run's statistics that are listed."""
_FOUND = {
    *("active", "mean", "max", "position_share", "tokens_by_mean", "token_means"),
    *(f"decile_{tenth}" for tenth in range(1, 10)),
}
"""Columns of an analysis that the page needs."""
_TOKENS = 5
"""Tokens per feature in the list."""


class Analysed(NamedTuple):
    """What `task=analyse` found about the features of a run."""

    firing: pyarrow.Table
    vocabulary: np.ndarray
    """Number of each token id's string."""

    def token_lists(self, column: str, width: int) -> np.ndarray:
        """[features, width]: numbers of the strings of a column of token lists; 0 where a list ends."""
        padded = padded_lists(self.firing[column], width, -1).astype(int)
        return np.where(padded < 0, 0, self.vocabulary[padded.clip(0)])


def read_analysed(runs: Runs, strings: Strings, problems: list[str]) -> dict[int, Analysed]:
    """Read what was found about features, by position of the run; those never analysed are left out.

    The string of number 0 is empty and stands for no token.
    """
    strings.numbers([""])
    known: dict[bytes, np.ndarray] = {}
    found = {}
    for place in runs.done():
        folder, run_id = runs.folder_of(place).features, runs.ids[place]
        try:
            if analysis_owner(folder) != run_id:
                continue
            files = analysis_files(folder)
            table = read_analysis(files.tokens, run_id)["string"].combine_chunks()
            key = b"".join(bytes(part) for part in table.buffers() if part is not None)
            if key not in known:
                known[key] = strings.numbers(table.to_pylist())
            firing = read_analysis(files.features, run_id)
            if missing := _FOUND - set(firing.column_names):
                raise unreadable(files.features, f"it has no column {min(missing)}", "run task=analyse again")
            found[place] = Analysed(firing, known[key])
        except SaeSweepError as error:
            problems.append(str(error))
    return found


class Listing(NamedTuple):
    """All features of the finished runs, one run after the other."""

    starts: np.ndarray
    """[runs + 1]: where the features of each run begin."""
    density: np.ndarray
    """[features]: share of held-out tokens on which each fires."""
    block: bytes

    def size(self, place: int) -> int:
        """How many features a run has."""
        return int(self.starts[place + 1] - self.starts[place])

    def rows(self, place: int) -> slice:
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


def listing(
    runs: Runs,
    analysed: Mapping[int, Analysed],
    compared: Compared | None,
    members: Members,
    problems: list[str],
) -> Listing:
    """Lists every feature of every finished run whose statistics can be read."""
    tables = _statistics(runs, problems)
    sizes = [tables[place].num_rows if place in tables else 0 for place in range(len(runs.names))]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = int(starts[-1])
    density, largest, stable = (np.full(total, np.nan) for _ in range(3))
    position, tokens = np.full(total, np.nan), np.zeros((total, _TOKENS), dtype=np.int64)
    family = np.full(total, -1, dtype=np.int32)
    match = _Matches(total)
    for place, table in tables.items():
        rows = slice(int(starts[place]), int(starts[place + 1]))
        density[rows] = table["density"].to_numpy()
        largest[rows] = table["max_activation"].to_numpy()
        if place in members.stability and len(members.stability[place]) == sizes[place]:
            stable[rows] = members.stability[place]
        one = analysed.get(place)
        if one is not None and one.firing.num_rows == sizes[place]:
            tokens[rows] = one.token_lists("tokens_by_mean", _TOKENS)
            position[rows] = one.firing["position_share"].to_numpy()
        if compared is not None and place in compared.places:
            match.fill(runs, compared, place, rows)
    owner = np.repeat(np.arange(len(members.kinds)), np.diff(members.starts))
    at = starts[members.runs] + members.features
    family[at[at < total]] = owner[at < total]
    kind_words = Strings()
    kinds = [kind_words.numbers(kinds) for kinds in members.kinds]
    arrays = {
        "starts": starts.astype(np.uint32),
        "density": _stored(density),
        "largest": _stored(largest / _LARGEST),
        "stable": shares(stable),
        "position": shares(position),
        "tokens": smallest(tokens.ravel()),
        "family": family,
        **match.arrays(),
        "family_starts": members.starts.astype(np.uint32),
        "family_runs": smallest(members.runs),
        "family_features": smallest(members.features),
        "kind_counts": smallest(np.array([len(one) for one in kinds], dtype=int)),
        "kinds": smallest(np.concatenate([np.zeros(0, int), *kinds])),
    }
    meta = {"kind_words": kind_words.texts, "width": _TOKENS, "log_steps": LOG_STEPS, "never": NEVER}
    meta["most"] = _LARGEST
    return Listing(starts, density, columns(arrays, meta))


class _Matches:
    """For each feature: the share of the other SAEs that have it, and the nearest feature of all of them."""

    def __init__(self, total: int) -> None:
        self._share = np.full(total, np.nan)
        self._cosine = np.full(total, np.nan)
        self._run, self._feature = np.zeros(total, dtype=int), np.zeros(total, dtype=int)

    def fill(self, runs: Runs, compared: Compared, place: int, rows: slice) -> None:
        found = compared.nearest[compared.places.index(place)]
        others = [
            (other, found[runs.names[other]]) for other in compared.places if runs.names[other] in found
        ]
        if not others or any(len(one.cosine) != rows.stop - rows.start for _, one in others):
            return
        cosines = np.stack([one.cosine for _, one in others])
        best, each = cosines.argmax(0), np.arange(cosines.shape[1])
        self._share[rows] = (cosines > compared.answer.threshold).mean(0)
        self._cosine[rows] = cosines[best, each]
        self._run[rows] = np.array([other for other, _ in others])[best]
        self._feature[rows] = np.stack([one.feature for _, one in others])[best, each]

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "match": shares(self._share),
            "cosine": shares(self._cosine),
            "nearest_run": smallest(self._run),
            "nearest_feature": smallest(self._feature),
        }


def padded_lists(column: pyarrow.ChunkedArray, width: int, filler: float) -> np.ndarray:
    """A column of lists of numbers as [rows, width], with the filler where a list ends."""
    lists = column.combine_chunks()
    lengths = compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    longest = max(width, int(lengths.max(initial=0)))
    inside = np.arange(longest)[None] < lengths[:, None]
    padded = np.full(inside.shape, filler, dtype=float)
    padded[inside] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded[:, :width]


def _statistics(runs: Runs, problems: list[str]) -> dict[int, pyarrow.Table]:
    found = {}
    for place in runs.done():
        try:
            found[place] = read_statistics(runs.folder_of(place).features, runs.ids[place], _LISTED)
        except SaeSweepError as error:
            problems.append(str(error))
    return found


def _stored(values: np.ndarray) -> np.ndarray:
    """Values up to 1 as steps below it, `LOG_STEPS` per power of ten; `NEVER` for 0 and NaN."""
    fires = values > 0
    steps = -np.log10(np.where(fires, values, 1)) * LOG_STEPS
    return np.where(fires, np.round(steps).clip(0, NEVER - 1), NEVER).astype(np.uint16)
