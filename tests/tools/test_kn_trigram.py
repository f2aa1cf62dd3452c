"""The Kneser-Ney trigram is a distribution in every context, and equals the naive recursion."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from kn_trigram import KneserNeyTrigram, unigram_cross_entropy

VOCAB = 23


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    rng = np.random.default_rng(0)
    skewed = rng.zipf(1.4, 3_000) % (VOCAB - 3)  # the last three ids never occur
    return np.concatenate([skewed, np.tile([1, 2, 3, 4, 5], 40)])


@pytest.fixture(scope="module")
def trigram(tokens: np.ndarray) -> KneserNeyTrigram:
    return KneserNeyTrigram(tokens, VOCAB)


def rows(first: int, second: int) -> np.ndarray:
    return np.array([(first, second, third) for third in range(VOCAB)])


@pytest.mark.parametrize("context", [(1, 2), (0, 0), (19, 18), (22, 1), (1, 22), (21, 22)])
def test_probabilities_sum_to_one_in_seen_and_unseen_contexts(
    trigram: KneserNeyTrigram, context: tuple
) -> None:
    probabilities = trigram.probabilities(rows(*context))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert (probabilities > 0).all()


def test_all_contexts_sum_to_one(trigram: KneserNeyTrigram) -> None:
    grams = np.array(np.meshgrid(*[np.arange(VOCAB)] * 3, indexing="ij")).reshape(3, -1).T
    sums = trigram.probabilities(grams).reshape(-1, VOCAB).sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, atol=1e-12)


def test_unseen_context_falls_back_to_the_lower_order(trigram: KneserNeyTrigram) -> None:
    np.testing.assert_allclose(trigram.probabilities(rows(21, 1)), trigram.probabilities(rows(22, 1)))


def naive_probability(tokens: list[int], gram: tuple[int, ...]) -> float:
    """P(last | others) by the recursion of Chen and Goodman, counted anew in every call."""
    if not gram:
        return 1 / VOCAB
    counts = gram_counts(tokens, len(gram))
    lower = naive_probability(tokens, gram[1:])
    followers = {other: count for other, count in counts.items() if other[:-1] == gram[:-1]}
    if not followers:
        return lower
    discounts = naive_discounts(counts)
    total = sum(followers.values())
    left = sum(discounts[min(count, 3)] for count in followers.values())
    count = followers.get(gram, 0)
    return (count - discounts[min(count, 3)] + left * lower) / total


def gram_counts(tokens: list[int], n: int) -> Counter:
    """Raw counts of trigrams; for shorter grams, the number of distinct ids before them."""
    counts = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    for _ in range(3 - n):
        counts = Counter(gram[1:] for gram in counts)
    return counts


def naive_discounts(counts: Counter) -> list[float]:
    n = [max(1, sum(count == c for count in counts.values())) for c in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    raw = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
    return [0.0] + [min(max(d, 0.0), c) for c, d in enumerate(raw, start=1)]


def test_equals_the_naive_recursion(trigram: KneserNeyTrigram, tokens: np.ndarray) -> None:
    grams = np.random.default_rng(1).integers(0, VOCAB, (60, 3))
    grams = np.concatenate([grams, [tokens[i : i + 3] for i in range(60)]])
    naive = [naive_probability(tokens.tolist(), tuple(map(int, gram))) for gram in grams]
    np.testing.assert_allclose(trigram.probabilities(grams), naive, rtol=1e-12)


def test_lower_orders_count_continuations() -> None:
    """An id that always follows the same id ("San Francisco") is improbable after any other."""
    varied = [0, 1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 3, 4, 5, 0, 2, 4, 0, 3, 5]
    tokens = np.array(varied + [6, 7] * 50 + varied[::-1])
    new_context = KneserNeyTrigram(tokens, 9).probabilities(np.array([[8, 8, 1], [8, 8, 7]]))
    assert new_context[0] > new_context[1]


def test_beats_the_unigram_on_its_own_text(trigram: KneserNeyTrigram, tokens: np.ndarray) -> None:
    assert trigram.cross_entropy(tokens) < unigram_cross_entropy(tokens, tokens, VOCAB)
