"""How much of each feature's activation every token of the vocabulary causes, in bounded memory."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PAIRS = 2**23
"""Pairs of a feature and a token that are kept: 200 MB."""


_FEATURES_AT_ONCE = 1024
"""Features whose pairs are ranked together: all at once would take over a GB."""


class TopTokens(NamedTuple):
    """The tokens on which a feature fires most, best first; id -1 where it fires on fewer."""

    ids: Int[Tensor, "d_sae most"]
    means: Float[Tensor, "d_sae most"]
    """Mean activation over the occurrences of the token on which the feature fires."""
    counts: Int[Tensor, "d_sae most"]
    """Those occurrences."""


class TokenSums:
    """Sum and number of activations for each pair of feature and token that occurs.

    Above `pairs` of them the smallest sums of the features with most pairs are dropped; `dropped` bounds what
    a pair may have lost.
    """

    def __init__(self, d_sae: int, vocabulary: int, pairs: int = PAIRS) -> None:
        self._d_sae, self._vocabulary, self._most = d_sae, vocabulary, pairs
        self._whole = torch.zeros(d_sae, dtype=torch.float64)
        """Whole activation of each feature, dropped pairs included."""
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting_count = 0
        self.dropped = 0.0
        """Largest sum that was dropped, added up over all times; 0 while nothing was."""

    def update(
        self, features: Int[Tensor, " n"], tokens: Int[Tensor, " n"], values: Float[Tensor, " n"]
    ) -> None:
        """Add activations, each with its feature and the id of its token."""
        features, values = features.cpu().long(), values.cpu().double()
        keys = features * self._vocabulary + tokens.cpu().long()
        self._whole.index_add_(0, features, values)
        self._wait(keys, values, torch.ones_like(keys))

    def merge(self, other: "TokenSums") -> None:
        """Add another part of the text."""
        other._settle()
        self._whole += other._whole
        self._wait(other._keys, other._sums, other._counts)
        self.dropped += other.dropped

    def shares(self) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """Each feature's token of the largest sum, and that token's share of its whole activation.

        NaN, and -1 as the token, for features that never fire.
        """
        self._settle()
        features = self._keys // self._vocabulary
        largest = torch.zeros_like(self._whole).scatter_reduce(0, features, self._sums, "amax")
        best = self._sums == largest[features]
        tokens = torch.full((self._d_sae,), -1)
        tokens.scatter_reduce_(
            0, features[best], self._keys[best] % self._vocabulary, "amin", include_self=False
        )
        return tokens, largest / self._whole

    def by_mean(self, most: int, at_least: int = 1) -> TopTokens:
        """The tokens of the highest mean activation, of those on which a feature fired `at_least` times."""
        self._settle()
        shape = (self._d_sae, most)
        found = TopTokens(
            torch.full(shape, -1),
            torch.full(shape, torch.nan, dtype=torch.float64),
            torch.zeros(shape, dtype=torch.int64),
        )
        firsts = torch.arange(0, self._d_sae + _FEATURES_AT_ONCE, _FEATURES_AT_ONCE)
        for start, end in pairwise(torch.searchsorted(self._keys, firsts * self._vocabulary).tolist()):
            self._rank(slice(start, end), at_least, found)
        return found

    def _rank(self, part: slice, at_least: int, found: TopTokens) -> None:
        """Write the best tokens of some features into `found`, given all of their pairs."""
        frequent = self._counts[part] >= at_least
        keys, sums, counts = (values[part][frequent] for values in (self._keys, self._sums, self._counts))
        means = sums / counts
        order = means.argsort(descending=True, stable=True)
        order = order[(keys[order] // self._vocabulary).argsort(stable=True)]
        features = keys[order] // self._vocabulary
        sizes = torch.bincount(features, minlength=self._d_sae)
        ranks = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[features]
        kept = ranks < found.ids.shape[1]
        place, order = (features[kept], ranks[kept]), order[kept]
        found.ids[place] = keys[order] % self._vocabulary
        found.means[place] = means[order]
        found.counts[place] = counts[order]

    def _wait(self, keys: Tensor, sums: Tensor, counts: Tensor) -> None:
        self._waiting.append((keys, sums, counts))
        self._waiting_count += len(keys)
        if self._waiting_count > self._most // 4:
            self._settle()

    def _settle(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        keys, sums, counts = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_count = [], 0
        keys, places = keys.unique(return_inverse=True)
        self._insert(keys, _added(len(keys), places, sums), _added(len(keys), places, counts))
        if len(self._keys) > self._most:
            self._drop_the_least()

    def _insert(self, keys: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Add sums of distinct keys, in order, to those that are sorted already: all together sort slowly."""
        places = torch.searchsorted(self._keys, keys)
        known = places < len(self._keys)
        known[known.clone()] = self._keys[places[known]] == keys[known]
        self._sums[places[known]] += sums[known]
        self._counts[places[known]] += counts[known]
        new = ~known
        places = places[new] + torch.arange(int(new.sum()))
        for name, values in (("_keys", keys), ("_sums", sums), ("_counts", counts)):
            setattr(self, name, _inserted(getattr(self, name), places, values[new]))

    def _drop_the_least(self) -> None:
        """Keep as many of each feature, from its largest sum on: a rare feature has no large sums at all."""
        order = self._sums.argsort(descending=True, stable=True)
        features = self._keys[order] // self._vocabulary
        by_feature = features.argsort(stable=True)
        counts = torch.bincount(features, minlength=self._d_sae)
        ranks = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        order = order[by_feature[ranks.argsort(stable=True)]]
        self.dropped += float(self._sums[order[self._most :]].max())
        kept = order[: self._most].sort().values
        self._keys, self._sums, self._counts = self._keys[kept], self._sums[kept], self._counts[kept]


def _inserted(old: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """A tensor with `new` at some places, and `old` at the others."""
    both = old.new_empty(len(old) + len(new))
    others = torch.ones(len(both), dtype=torch.bool)
    others[places] = False
    both[places], both[others] = new, old
    return both


def _added(size: int, places: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(size, dtype=values.dtype).index_add_(0, places, values)
