"""The details of features: the text they fire on, and the tokens they promote.

A sample of the features is inside the page; all of them are in files of a folder beside it, which the page
reads when it is there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.config import SaeSweepError
from sae_sweep.report.analysis_files import DECILES, analysis_files, read_analysis
from sae_sweep.report.page.families import Members
from sae_sweep.report.page.features import Analysed, Listing, padded_lists
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.pack import columns, shares, smallest
from sae_sweep.report.page.runs import Runs

INSIDE = 8192
"""Features whose details are inside the page, with 600 to 900 bytes each."""
_LONG_LIST = 250_000
"""Features above which half as many details are inside, since the list takes the room."""
CHUNK = 256
"""Features of a file of the folder."""
_TOP, _OF_DECILE = 8, 1
"""Contexts per feature: of the highest activations, and of each decile."""
_TOKENS = 10
"""Tokens per list: those a feature fires most on, promotes and suppresses."""
_COLUMNS = ("feature", "kind", "rank", "at", "decile", "tokens", "activations")
"""Columns of contexts that the page needs."""
_STEPS = 254
"""Steps of a stored activation, as a share of the largest in its context."""


class Texts(NamedTuple):
    """Contexts of a run: the highest of each feature, then one of each decile."""

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


def nearest_of(
    runs: Runs, compared: Compared | None, size: Callable[[int], int]
) -> Callable[[int], Nearests]:
    """A function that gives the nearest features for those of a run; `size` gives how many a run has."""

    def find(place: int) -> Nearests:
        others = compared.places if compared is not None else []
        count = size(place)
        features, cosines = np.zeros((count, len(others)), int), np.full((count, len(others)), np.nan)
        for column, other in enumerate(others):
            found = compared.between(runs, place, other) if compared is not None else None
            if found is not None and len(found.cosine) == count:
                features[:, column], cosines[:, column] = found.feature, found.cosine.clip(0, 1)
        return Nearests(others, features, cosines)

    return find


def chosen(
    listing: Listing, analysed: Mapping[int, Analysed], members: Members, most: int
) -> dict[int, np.ndarray]:
    """The features whose details are inside the page, by position of the run.

    All that fire, if they are not too many. Else half of them are the members of random families, so that
    one can be seen beside the others, and the rest are spread evenly over the firing rates of each SAE.
    """
    live = {
        place: np.flatnonzero(listing.density[listing.rows(place)] > 0)
        for place, one in analysed.items()
        if one.firing.num_rows == len(listing.density[listing.rows(place)])
    }
    most = most if len(listing.density) <= _LONG_LIST else most // 2
    if sum(map(len, live.values())) <= most:
        return live
    picked = {place: [features[:0]] for place, features in live.items()}
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
    for place, features in live.items():
        by_rate = features[np.argsort(-listing.density[listing.rows(place)][features], kind="stable")]
        evenly = np.linspace(0, len(by_rate) - 1, min(share, len(by_rate))).round().astype(int)
        picked[place].append(by_rate[evenly])
    return {place: np.unique(np.concatenate(parts)) for place, parts in picked.items()}


def read_texts(runs: Runs, place: int, one: Analysed, problems: list[str]) -> Texts | None:
    """Read the contexts of a run; None if they are damaged, which is named among `problems`."""
    path = analysis_files(runs.folder_of(place).features).contexts
    try:
        table = read_analysis(path, runs.ids[place], _COLUMNS)
    except SaeSweepError as error:
        problems.append(str(error))
        return None
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


def block(
    texts: Mapping[int, Texts], features: Mapping[int, np.ndarray], nearest: Callable[[int], Nearests]
) -> bytes:
    """The details of some features, by position of the run and number of the feature.

    Args:
        texts: contexts of each run.
        features: the features of each run.
        nearest: finds the nearest features of other runs for those of a run.
    """
    parts = [(place, texts[place], numbers) for place, numbers in features.items() if place in texts]
    arrays: dict[str, list[np.ndarray]] = {}
    for place, one, numbers in parts:
        others = nearest(place)
        found = {
            "run": np.full(len(numbers), place),
            "feature": numbers,
            "other_feature": others.features[numbers].ravel(),
            "other_cosine": shares(others.cosines[numbers]).ravel(),
        }
        for name, values in (found | _of_features(one, numbers) | _of_contexts(one, numbers)).items():
            arrays.setdefault(name, []).append(values)
    whole = {name: np.concatenate(values) for name, values in arrays.items()}
    packed = {name: one if one.dtype == np.float32 else smallest(one) for name, one in whole.items()}
    compared = nearest(parts[0][0]).runs if parts else []
    meta = {"tokens_per_list": _TOKENS, "steps": _STEPS, "deciles": len(DECILES), "others": compared}
    return columns(packed, meta)


def chunks(one: Texts, place: int, nearest: Callable[[int], Nearests]) -> Iterator[tuple[int, bytes]]:
    """The details of all features of a run, as numbered blocks of `CHUNK` features."""
    for start in range(0, one.analysed.firing.num_rows, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, one.analysed.firing.num_rows))
        yield start // CHUNK, block({place: one}, {place: numbers}, nearest)


def _of_features(one: Texts, numbers: np.ndarray) -> dict[str, np.ndarray]:
    firing = one.analysed.firing.take(pyarrow.array(numbers))
    rows = Analysed(firing, one.analysed.vocabulary)
    deciles = np.stack([firing[f"decile_{tenth}"].to_numpy() for tenth in range(1, 10)], 1)
    found = {
        "active": firing["active"].to_numpy(),
        "mean": firing["mean"].to_numpy().astype(np.float32),
        "largest": firing["max"].to_numpy().astype(np.float32),
        "decile_edges": deciles.ravel().astype(np.float32),
    }
    lists = {"tokens_by_mean": "token_means"}
    if "promoted" in firing.column_names:
        lists |= {"promoted": "promoted_effects", "suppressed": "suppressed_effects"}
    for tokens, values in lists.items():
        found[tokens] = rows.token_lists(tokens, _TOKENS).ravel()
        found[values] = padded_lists(firing[values], _TOKENS, np.nan).ravel().astype(np.float32)
    return found


def _of_contexts(one: Texts, numbers: np.ndarray) -> dict[str, np.ndarray]:
    counts = one.starts[numbers + 1] - one.starts[numbers]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    table = one.table.take(pyarrow.array(np.repeat(one.starts[numbers], counts) + within))
    lists = table["tokens"].combine_chunks()
    lengths, tokens = compute.list_value_length(lists).to_numpy(), lists.flatten().to_numpy()
    around = table["activations"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    largest = np.zeros(len(lengths), dtype=np.float32)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    np.maximum.at(largest, owner, around)
    relative = around / np.where(largest > 0, largest, 1)[owner]
    top = np.array(compute.equal(table["kind"], "top"), dtype=bool)
    return {
        "contexts": counts,
        "decile": np.where(top, 0, table["decile"].to_numpy()),
        "at": table["at"].to_numpy(),
        "highest": largest,
        "lengths": lengths,
        "words": one.analysed.vocabulary[tokens],
        "around": np.round(_STEPS * relative.clip(0, 1)).astype(np.uint8),
    }
