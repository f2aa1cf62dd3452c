"""The details of features: the text they fire on, and the tokens they promote.

A sample of the features is inside the page; all of them are in files of a folder beside it, which the page
reads when it is there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.report.analysis_files import DECILES
from sae_sweep.report.page.analysed import Analysed, Statistics, read_contexts
from sae_sweep.report.page.families import Members
from sae_sweep.report.page.features import LISTED, evenly
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.pack import columns, shares, smallest
from sae_sweep.report.page.runs import Runs

INSIDE = 8192
"""Features whose details are inside the page, with 600 to 900 bytes each; half as many beside a full list."""
CHUNK = 256
"""Features of a file of the folder."""
_TOP, _OF_DECILE = 8, 1
"""Contexts per feature: of the highest activations, and of each decile."""
_TOKENS = 10
"""Tokens per list: those a feature fires most on, promotes and suppresses."""
_STEPS = 254
"""Steps of a stored activation, as a share of the feature's largest."""
_LISTS = {"tokens_by_mean": "token_means", "promoted": "promoted_effects", "suppressed": "suppressed_effects"}
"""Lists of tokens of a feature, with their values."""


class Texts(NamedTuple):
    """Contexts of a run that are shown: the highest of each feature, then one of each decile."""

    analysed: Analysed
    table: pyarrow.Table
    starts: np.ndarray
    """[features + 1]: where the contexts of each feature begin in the table."""


class Nearests(NamedTuple):
    """The nearest feature of each compared run for the features of one run."""

    runs: list[int]
    """Positions of the compared runs."""
    features: np.ndarray
    """[features, runs]."""
    cosines: np.ndarray
    """[features, runs]; NaN for the run itself and for runs that it was not compared with."""


def nearest_of(runs: Runs, compared: Compared | None, place: int, size: int) -> Nearests:
    """The nearest features of the other runs for the `size` features of a run."""
    others = compared.places if compared is not None else []
    features, cosines = np.zeros((size, len(others)), int), np.full((size, len(others)), np.nan)
    for column, other in enumerate(others):
        found = compared.between(runs, place, other) if compared is not None else None
        if found is not None:
            features[:, column], cosines[:, column] = found.feature, found.cosine.clip(0, 1)
    return Nearests(others, features, cosines)


def chosen(
    statistics: Statistics, analysed: Mapping[int, Analysed], members: Members, most: int
) -> dict[int, np.ndarray]:
    """The features whose details are inside the page, by position of the run.

    All that fire, if they are not too many. Else half of them are the members of random families, so that
    one can be seen beside the others, and the rest are spread evenly over the firing rates of each SAE.
    """
    live = {place: statistics.live(place) for place in analysed}
    most = most if statistics.starts[-1] <= LISTED else most // 2
    if sum(map(len, live.values())) <= most:
        return live
    picked: dict[int, list[np.ndarray]] = {place: [] for place in live}
    left = most // 2
    for family in np.random.default_rng(0).permutation(len(members.kinds)):
        rows = slice(members.starts[family], members.starts[family + 1])
        if left < rows.stop - rows.start:
            break
        for place, feature in zip(members.runs[rows], members.features[rows], strict=True):
            if place in picked:
                picked[place].append(np.array([feature]))
                left -= 1
    share = (most // 2 + left) // len(live)
    return {
        place: np.unique(np.concatenate([*parts, evenly(statistics, place, share)]))
        for place, parts in picked.items()
    }


def read_texts(one: Analysed) -> Texts:
    """Read the contexts of a run, and choose those that are shown.

    Raises:
        SaeSweepError: one line with the file, if it is damaged or does not fit the others.
    """
    table = read_contexts(one)
    feature, rank, decile = (table[name].to_numpy().astype(int) for name in ("feature", "rank", "decile"))
    top = np.array(compute.equal(table["kind"], "top"))
    order = np.lexsort((rank, np.where(top, 0, 11 - decile), feature))
    kind = np.where(top, 0, decile)[order]
    group = feature[order] * 11 + kind
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    within = np.arange(len(group)) - np.repeat(begins, np.diff(np.append(begins, len(group))))
    kept = order[within < np.where(kind == 0, _TOP, _OF_DECILE)]
    starts = np.searchsorted(feature[kept], np.arange(one.firing.num_rows + 1))
    return Texts(one, table.take(pyarrow.array(kept)), starts)


Part = dict[str, np.ndarray]
"""Columns of the details of some features of a run."""


def part(place: int, one: Texts, numbers: np.ndarray, nearest: Nearests) -> Part:
    """The details of some features of a run."""
    found = {
        "run": np.full(len(numbers), place),
        "feature": numbers,
        "other_feature": nearest.features[numbers].ravel(),
        "other_cosine": shares(nearest.cosines[numbers]).ravel(),
    }
    return found | _of_features(one, numbers) | _of_contexts(one, numbers)


def block(parts: Sequence[Part], compared: list[int]) -> bytes:
    """The details of features, run by run; `compared` are the runs whose nearest features they name."""
    names = dict.fromkeys(name for one in parts for name in one)
    whole = {name: np.concatenate([one[name] for one in parts]) for name in names}
    packed = {name: one if one.dtype == np.float32 else smallest(one) for name, one in whole.items()}
    meta = {"tokens_per_list": _TOKENS, "steps": _STEPS, "deciles": len(DECILES), "others": compared}
    return columns(packed, meta)


def chunks(place: int, one: Texts, nearest: Nearests) -> Iterator[tuple[int, bytes]]:
    """The details of all features of a run, as numbered blocks of `CHUNK` features."""
    for start in range(0, one.analysed.firing.num_rows, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, one.analysed.firing.num_rows))
        yield start // CHUNK, block([part(place, one, numbers, nearest)], nearest.runs)


def _of_features(one: Texts, numbers: np.ndarray) -> dict[str, np.ndarray]:
    rows = one.analysed._replace(firing=one.analysed.firing.take(pyarrow.array(numbers)))
    deciles = np.stack([rows.firing[f"decile_{tenth}"].to_numpy() for tenth in range(1, 10)], 1)
    found = {
        "active": rows.firing["active"].to_numpy(),
        "mean": rows.firing["mean"].to_numpy().astype(np.float32),
        "largest": rows.firing["max"].to_numpy().astype(np.float32),
        "decile_edges": deciles.ravel().astype(np.float32),
    }
    for tokens, values in _LISTS.items():
        found[tokens] = rows.token_lists(tokens, _TOKENS).ravel()
        found[values] = rows.numbers(values, _TOKENS).ravel()
    return found


def _of_contexts(one: Texts, numbers: np.ndarray) -> dict[str, np.ndarray]:
    counts = one.starts[numbers + 1] - one.starts[numbers]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    table = one.table.take(pyarrow.array(np.repeat(one.starts[numbers], counts) + within))
    lists = table["tokens"].combine_chunks()
    lengths, tokens = compute.list_value_length(lists).to_numpy(), lists.flatten().to_numpy()
    around = table["activations"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    largest = one.analysed.firing["max"].to_numpy()[numbers]
    relative = around / np.repeat(np.repeat(np.where(largest > 0, largest, 1), counts), lengths)
    at = table["at"].to_numpy()
    top = np.array(compute.equal(table["kind"], "top"), dtype=bool)
    return {
        "contexts": counts,
        "decile": np.where(top, 0, table["decile"].to_numpy()),
        "at": at,
        "activation": around[np.cumsum(lengths) - lengths + at].astype(np.float32),
        "lengths": lengths,
        "words": one.analysed.vocabulary[tokens],
        "around": np.round(_STEPS * relative.clip(0, 1)).astype(np.uint8),
    }
