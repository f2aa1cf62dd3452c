"""An interpolated modified Kneser-Ney trigram over token ids, the baseline that a language model has to beat.

It follows Chen and Goodman (1998), "An Empirical Study of Smoothing Techniques for Language Modeling",
section 4.1.6 and equations 26-27: raw counts at the highest order, continuation counts below it, three
discounts per order from the counts of counts, and the uniform distribution below the unigrams.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]


class Order(NamedTuple):
    """The n-grams of one order, sorted by key; the key of (w1..wn) is its number in base `vocab`."""

    keys: Ids
    """[n_grams], each n-gram once."""
    mass: Reals
    """[n_grams], the discounted count divided by its context's total, before interpolation."""
    contexts: Ids
    """[n_contexts], the keys of the contexts seen, sorted."""
    backoff: Reals
    """[n_contexts], the probability mass that each context leaves to the lower order."""


class KneserNeyTrigram:
    """P(w | u v) for token ids below `vocab` (at most 2**21, so that a trigram's key fits in 63 bits)."""

    def __init__(self, tokens: Ids, vocab: int) -> None:
        """Fit to token ids, shape [n_tokens]."""
        self.vocab = vocab
        tokens = tokens.astype(np.int64)
        trigrams, counts3 = np.unique(_keys(tokens, 3, vocab), return_counts=True)
        bigrams, counts2 = np.unique(trigrams % vocab**2, return_counts=True)
        unigrams, counts1 = np.unique(bigrams % vocab, return_counts=True)
        self.orders = [
            _order(unigrams, counts1, vocab),
            _order(bigrams, counts2, vocab),
            _order(trigrams, counts3, vocab),
        ]

    def probabilities(self, grams: Ids) -> Reals:
        """Return P(w | u v) for rows (u, v, w) of `grams`, shape [n, 3] -> [n]."""
        key = (grams[:, 0] * self.vocab + grams[:, 1]) * self.vocab + grams[:, 2]
        result = np.full(len(key), 1 / self.vocab)
        for n, order in enumerate(self.orders, start=1):
            gram = key % self.vocab**n
            mass, _ = _look_up(order.keys, order.mass, gram)
            backoff, seen = _look_up(order.contexts, order.backoff, gram // self.vocab)
            result = np.where(seen, mass + backoff * result, result)
        return result

    def cross_entropy(self, tokens: Ids) -> float:
        """Return the mean of -ln P in nats over `tokens` from the third on, each given the two before."""
        windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), 3)
        return float(-np.log(self.probabilities(windows)).mean())


def unigram_cross_entropy(train: Ids, tokens: Ids, vocab: int) -> float:
    """Return the mean of -ln P in nats over `tokens` under the add-one unigram of `train`."""
    counts = np.bincount(train, minlength=vocab) + 1.0
    return float(-np.log(counts / counts.sum())[tokens].mean())


def _keys(tokens: Ids, n: int, vocab: int) -> Ids:
    length = len(tokens) - n + 1
    keys = np.zeros(length, dtype=np.int64)
    for offset in range(n):
        keys = keys * vocab + tokens[offset : offset + length]
    return keys


def _discounts(counts: Ids) -> Reals:
    """Return the discount per count, shape [4]; the last is for three and more (equation 26)."""
    n1, n2, n3, n4 = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    raw = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(raw, 0.0, [0.0, 1.0, 2.0, 3.0])


def _order(keys: Ids, counts: Ids, vocab: int) -> Order:
    """Discount the counts of one order; `keys` is sorted, so the keys of a context are contiguous."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts, starts = np.unique(keys // vocab, return_index=True)
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    lengths = np.diff(np.append(starts, len(keys)))
    mass = (counts - discount) / np.repeat(totals, lengths)
    return Order(keys, mass, contexts, np.add.reduceat(discount, starts) / totals)


def _look_up(keys: Ids, values: Reals, wanted: Ids) -> tuple[Reals, NDArray[np.bool_]]:
    """Return the value of each wanted key (0 if absent), and whether it is present."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    return np.where(found, values[at], 0.0), found
