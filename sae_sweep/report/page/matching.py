"""The comparison on the page: the answer, the matching matrix, and what is shown of each pair of SAEs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.analysis import SEVERAL, KeySummary
from sae_sweep.analysis.ordering import cluster_order
from sae_sweep.analysis.pairs import Nearest
from sae_sweep.config import MatchingConfig, SaeSweepError
from sae_sweep.report.answer import Answer, read_answer
from sae_sweep.report.features import read_statistics
from sae_sweep.report.formatting import start_notes
from sae_sweep.report.nearest_files import read_nearest
from sae_sweep.report.page.pack import columns, smallest
from sae_sweep.report.page.runs import Runs
from sae_sweep.report.parquet import read_parquet
from sae_sweep.store import is_present

BINS = 100
"""Bins of a pair's histogram of best cosines, from 0 to 1; what is below 0 is in the first."""
_EXAMPLES = 8
"""Shared features, and features without a match, that are shown of each direction of a pair."""
_REMEDY = "compare the SAEs again with task=match"


class Compared(NamedTuple):
    """The comparison of a sweep."""

    answer: Answer
    places: list[int]
    """Positions among the runs of the SAEs that were compared and are still in the sweep."""
    nearest: list[Mapping[str, Nearest]]
    """For each of them, the nearest features of each other, by its name; empty where the file is damaged."""
    pairs: Mapping[tuple[str, str], float]
    """[a, b]: share of a's features that have a match in b."""

    def between(self, runs: Runs, a: int, b: int) -> Nearest | None:
        """The nearest feature of run b for each of run a; None if the two were not compared."""
        if a not in self.places:
            return None
        return self.nearest[self.places.index(a)].get(runs.names[b])

    def size(self, a: int, default: int) -> int:
        """How many features of run a were compared; `default` if that is not known."""
        found = self.nearest[self.places.index(a)] if a in self.places else {}
        return next((len(one.cosine) for one in found.values()), default)


def read_compared(runs: Runs, problems: list[str]) -> Compared | None:
    """Read the last comparison; None without one. A damaged file is named among `problems`."""
    folder = runs.folder.matching
    if not is_present(folder / "answer.json"):
        if is_present(folder / "pairs.parquet"):
            problems.append(f"{folder} is of an earlier version: {_REMEDY}")
        return None
    try:
        answer = read_answer(folder / "answer.json")
        rows = read_parquet(folder / "pairs.parquet", ["a", "b", "ratio_a_in_b", "ratio_b_in_a"], _REMEDY)
    except SaeSweepError as error:
        problems.append(str(error))
        return None
    places = runs.places(answer.names)
    pairs = {}
    for row in rows.to_pylist():
        pairs[row["a"], row["b"]], pairs[row["b"], row["a"]] = row["ratio_a_in_b"], row["ratio_b_in_a"]
    return Compared(answer, places, [_nearest(runs, place, problems) for place in places], pairs)


def _nearest(runs: Runs, place: int, problems: list[str]) -> Mapping[str, Nearest]:
    try:
        return read_nearest(runs.folder.matching / "nearest", runs.names[place])
    except SaeSweepError as error:
        problems.append(str(error))
        return {}


def answer_section(runs: Runs, compared: Compared | None, problems: list[str]) -> dict[str, Any]:
    """The answer in a sentence, the numbers of each key, and what the comparison leaves out."""
    if compared is None:
        done = len(runs.done())
        why = f"it has {done}" if done < 2 else "its SAEs were not compared yet: run task=match"
        text = f"Nothing can be told: a comparison needs two finished SAEs of this sweep, and {why}."
        return {"sentence": text, "keys": [], "notes": [], "limit": MatchingConfig.undertrained}
    answer = compared.answer
    nulls = _nulls(runs, answer.summaries, problems)
    newer = [runs.shorts[place] for place in runs.done() if place not in compared.places]
    notes = [f"Not compared yet: {', '.join(newer)}. Run task=match."] if newer else []
    gone = [runs.shorts[place] for place in compared.places if runs.states[place] != "done"]
    notes += [f"Compared, but not finished any more: {', '.join(gone)}."] if gone else []
    if any(one.undertrained for one in answer.summaries):
        notes += _start_notes(runs, compared)
        notes.append("Pairs with such an SAE are left out wherever a key has others.")
    return {
        "sentence": answer.sentence,
        "threshold": answer.threshold,
        "limit": answer.undertrained_above,
        "keys": [_key(one, nulls.get(one.key)) for one in answer.summaries],
        "notes": notes,
    }


def _start_notes(runs: Runs, compared: Compared) -> list[str]:
    """Why nothing is concluded from the SAEs that still match their start."""
    matches = dict(zip(compared.answer.names, compared.answer.init_matches, strict=True))
    own = [matches[runs.names[place]] for place in compared.places]
    return start_notes(
        own, [runs.starts[place] for place in compared.places], compared.answer.undertrained_above
    )


def matrix_section(runs: Runs, compared: Compared, problems: list[str]) -> dict[str, Any]:
    """The matching matrix over the compared runs, in an order in which alike SAEs stand beside each other.

    Also what is known by key: threshold curves, and every measure beside its null.
    """
    places, count = compared.places, len(compared.places)
    ratios = np.full((count, count), np.nan)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            ratios[i, j] = compared.pairs.get((runs.names[a], runs.names[b]), np.nan)
    starts = dict(zip(compared.answer.names, compared.answer.init_matches, strict=True))
    return {
        "runs": places,
        "order": cluster_order(ratios),
        "ratios": ratios,
        "starts": [starts[runs.names[place]] for place in places],
        "mixed": [bool(runs.table["mixed"][place]) for place in places],
        "curves": _rows(runs, "curves.parquet", problems),
        "measures": _rows(runs, "measures_by_key.parquet", problems),
    }


def pairs_block(runs: Runs, compared: Compared) -> bytes:
    """Both directions of every pair: histogram of best cosines, shared features, features without a match.

    Rows are directions (a, b), a's features sought in b. A histogram has `BINS` counts; `shared` and `alone`
    have `_EXAMPLES` rows of (feature of a, nearest of b), with their cosines; a row of 0xFFFFFFFF is empty.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _PAIR_COLUMNS}
    for place, found in zip(compared.places, compared.nearest, strict=True):
        densities = _densities(runs, place)
        for other in compared.places:
            nearest = found.get(runs.names[other])
            if nearest is None:
                continue
            for name, values in _direction(nearest, densities, compared.answer.threshold).items():
                parts[name].append(values)
            parts["a"].append(np.array([place]))
            parts["b"].append(np.array([other]))
    flat = {name: np.concatenate(each) if each else np.zeros(0) for name, each in parts.items()}
    cosines = {name: flat.pop(name).astype(np.float32) for name in ("shared_cosine", "alone_cosine")}
    whole = {name: smallest(values) for name, values in flat.items()}
    return columns({**whole, **cosines}, {"bins": BINS, "examples": _EXAMPLES})


_PAIR_COLUMNS = ("a", "b", "histogram", "shared", "shared_cosine", "alone", "alone_cosine")


def _direction(nearest: Nearest, densities: np.ndarray | None, threshold: float) -> dict[str, np.ndarray]:
    cosine, matched = nearest.cosine, nearest.cosine > threshold
    densities = densities if densities is not None and len(densities) == len(cosine) else None
    live = np.ones(len(cosine), dtype=bool) if densities is None else densities > 0
    shared = np.flatnonzero(matched & live)
    shared = shared[np.argsort(-cosine[shared], kind="stable")][:_EXAMPLES]
    alone = np.flatnonzero(~matched & live)
    weight = cosine if densities is None else densities  # the most active ones are the most telling
    alone = alone[np.argsort(-weight[alone], kind="stable")][:_EXAMPLES]
    histogram = np.histogram(cosine.clip(0, 1), BINS, (0, 1))[0]
    return {
        "histogram": histogram,
        "shared": _two(shared, nearest),
        "shared_cosine": _filled(cosine[shared], np.nan),
        "alone": _two(alone, nearest),
        "alone_cosine": _filled(cosine[alone], np.nan),
    }


def _two(features: np.ndarray, nearest: Nearest) -> np.ndarray:
    """(feature, nearest) of each example, flat."""
    both = np.stack([features, nearest.feature[features]], 1) if len(features) else np.zeros((0, 2), int)
    padded = np.full((_EXAMPLES, 2), 2**32 - 1, dtype=np.int64)
    padded[: len(both)] = both
    return padded.ravel()


def _filled(values: np.ndarray, filler: float) -> np.ndarray:
    return np.concatenate([values, np.full(_EXAMPLES - len(values), filler)])


def _densities(runs: Runs, place: int) -> np.ndarray | None:
    try:
        table = read_statistics(runs.folder_of(place).features, runs.ids[place], ["density"])
    except SaeSweepError:
        return None
    return table["density"].to_numpy()


def _key(one: KeySummary, null: float | None) -> dict[str, Any]:
    return {
        "key": "more than one" if one.key == SEVERAL else one.key,
        "values": list(one.values),
        "pairs": one.pairs,
        "undertrained": one.undertrained,
        "trained": one.trained,
        "ratio": one.ratio,
        "low": one.low,
        "high": one.high,
        "lowest": one.lowest,
        "highest": one.highest,
        "live": one.live_ratio,
        "mmcs": one.mmcs,
        "null": null,
    }


def _nulls(runs: Runs, summaries: Sequence[KeySummary], problems: list[str]) -> dict[str, float]:
    """Share of features that match a random dictionary, by key: the mean over its pairs and directions."""
    measures = _table(runs, "measures.parquet", problems)
    if measures is None:
        return {}
    found = {}
    chosen = measures.filter(
        (compute.field("features") == "all")
        & (compute.field("chance") == "random")
        & (compute.field("measure") == "ratio")
    )
    for one in summaries:
        rows = chosen.filter(compute.field("varied") == one.key)
        if one.trained:
            rows = rows.filter(~compute.field("undertrained"))
        mean = compute.mean(rows["null"]).as_py()
        if mean is not None:
            found[one.key] = mean
    return found


def _rows(runs: Runs, name: str, problems: list[str]) -> list[dict[str, Any]]:
    found = _table(runs, name, problems)
    return [] if found is None else found.to_pylist()


def _table(runs: Runs, name: str, problems: list[str]) -> pyarrow.Table | None:
    """A table of the comparison; None if there is none, or it is damaged."""
    path = runs.folder.matching / name
    if not is_present(path):
        return None
    try:
        return read_parquet(path, None, _REMEDY)
    except SaeSweepError as error:
        problems.append(str(error))
        return None
