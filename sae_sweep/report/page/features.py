"""The list of features on the page: how often each fires, on what, and which other SAEs have it."""

from collections.abc import Mapping

import numpy as np

from sae_sweep.report.page.analysed import Analysed, Statistics
from sae_sweep.report.page.families import Members
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.pack import Strings, columns, shares, smallest
from sae_sweep.report.page.runs import Runs

LISTED = 120_000
"""Features that are listed, with 15 to 25 bytes each; of more, a sample."""
_NEVER = 2**16 - 1
"""Stored density of a feature that never fires."""
_LOG_STEPS = 9000
"""Steps per power of ten of a stored density or activation, which counts down from the largest."""
_TOKENS = 5
"""Tokens per feature."""


def listed(statistics: Statistics, inside: Mapping[int, np.ndarray], most: int) -> list[np.ndarray]:
    """Numbers of the features of each run that are listed: all, if they are not too many.

    Else those whose details are inside the page, and others that are spread evenly over the firing rates of
    each SAE.
    """
    sizes = np.diff(statistics.starts)
    if sizes.sum() <= most:
        return [np.arange(size) for size in sizes]
    left = most - sum(map(len, inside.values()))
    found = []
    for place, size in enumerate(sizes):
        even = evenly(statistics, place, int(left * size / sizes.sum()))
        found.append(np.union1d(inside.get(place, even[:0]), even))
    return found


def evenly(statistics: Statistics, place: int, most: int) -> np.ndarray:
    """Up to `most` live features of a run, spread evenly over their firing rates."""
    live = statistics.live(place)
    by_rate = live[np.argsort(-statistics.density[statistics.rows(place)][live], kind="stable")]
    return by_rate[np.linspace(0, len(by_rate) - 1, min(most, len(by_rate))).round().astype(int)]


def listing(
    runs: Runs,
    statistics: Statistics,
    numbers: list[np.ndarray],
    analysed: Mapping[int, Analysed],
    compared: Compared | None,
    members: Members,
) -> bytes:
    """The block of the list: `numbers` of each run, in order, with what is known of each feature."""
    total = int(statistics.starts[-1])
    stable, position = np.full(total, np.nan), np.full(total, np.nan)
    tokens = np.zeros((total, _TOKENS), dtype=np.int64)
    match = _Matches(total)
    for place in range(len(runs.names)):
        rows, size = statistics.rows(place), statistics.size(place)
        if size and len(members.stability.get(place, ())) == size:
            stable[rows] = members.stability[place]
        if place in analysed:
            tokens[rows] = analysed[place].token_lists("tokens_by_mean", _TOKENS)
            position[rows] = analysed[place].firing["position_share"].to_numpy()
        if size and compared is not None and place in compared.places:
            match.fill(runs, compared, place, rows)
    chosen = np.concatenate([start + each for start, each in zip(statistics.starts, numbers, strict=False)])
    most = float(np.max(statistics.largest, where=np.isfinite(statistics.largest), initial=1e-9))
    arrays = {
        "starts": np.concatenate([[0], np.cumsum([len(each) for each in numbers])]).astype(np.uint32),
        "numbers": smallest(np.concatenate(numbers)),
        "density": _stored(statistics.density[chosen]),
        "largest": _stored(statistics.largest[chosen].clip(max=most) / most),
        "stable": shares(stable[chosen]),
        "position": shares(position[chosen]),
        "tokens": smallest(tokens[chosen].ravel()),
        "family": _family(statistics, members)[chosen],
        **match.arrays(chosen),
    }
    words, of_families = _families(members)
    meta = {"kind_words": words, "width": _TOKENS, "log_steps": _LOG_STEPS, "never": _NEVER, "most": most}
    return columns(arrays | of_families, meta)


def _family(statistics: Statistics, members: Members) -> np.ndarray:
    """[features]: the family that each is in; -1 for none."""
    family = np.full(int(statistics.starts[-1]), -1, dtype=np.int32)
    owner = np.repeat(np.arange(len(members.kinds)), np.diff(members.starts))
    known = members.features < np.diff(statistics.starts)[members.runs]
    family[(statistics.starts[members.runs] + members.features)[known]] = owner[known]
    return family


def _families(members: Members) -> tuple[list[str], dict[str, np.ndarray]]:
    """Words of kinds, and the columns that list the members and the kinds of each family."""
    words = Strings()
    kinds = [words.numbers(kinds) for kinds in members.kinds]
    return words.texts, {
        "family_starts": members.starts.astype(np.uint32),
        "family_runs": smallest(members.runs),
        "family_features": smallest(members.features),
        "kind_counts": smallest(np.array([len(one) for one in kinds], dtype=int)),
        "kinds": smallest(np.concatenate([np.zeros(0, int), *kinds])),
    }


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

    def arrays(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of some features."""
        return {
            "match": shares(self._share[chosen]),
            "cosine": shares(self._cosine[chosen]),
            "nearest_run": smallest(self._run[chosen]),
            "nearest_feature": smallest(self._feature[chosen]),
        }


def _stored(values: np.ndarray) -> np.ndarray:
    """Values up to 1 as steps below it, `_LOG_STEPS` per power of ten; `_NEVER` for 0 and NaN."""
    fires = values > 0
    steps = -np.log10(np.where(fires, values, 1)) * _LOG_STEPS
    return np.where(fires, np.round(steps).clip(0, _NEVER - 1), _NEVER).astype(np.uint16)
