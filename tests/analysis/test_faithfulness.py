"""SFR and FFR against twins that are written out."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_sweep.analysis.faithfulness import activity, fake, follow_seeds, noise, pooled
from sae_sweep.analysis.features import Subject
from sae_sweep.config import SaeSweepError


def rows(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_sfr_is_that_of_the_best_of_all_assignments() -> None:
    one, other = rows(5, 0), rows(5, 1)
    other[3] = 2 * one[1] + 0.01
    other[0] = one[4]
    best = max(
        itertools.permutations(range(5)),
        key=lambda order: sum(cosine(one[i], other[j]) for i, j in enumerate(order)),
    )
    for threshold in (0.3, 0.7, 0.95):
        twin = [cosine(one[i], other[j]) > threshold for i, j in enumerate(best)]
        assert follow_seeds([one, other], threshold).shared.tolist() == [twin]
    assert follow_seeds([one, one[[3, 0, 4, 2, 1]]]).shared.double().mean() == 1


def test_features_are_followed_from_the_first_seed_through_all_pairs() -> None:
    """Two of six features are in all seeds, one in the last two, one in the first two."""
    decoders = [torch.eye(24)[[*(0, 1), *(10 + 4 * k, 11 + 4 * k, 12 + 4 * k, 13 + 4 * k)]] for k in range(3)]
    decoders[1][2] = decoders[0][5]
    decoders[2][4] = decoders[1][3]
    order = [torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    found = follow_seeds([one[places] for one, places in zip(decoders, order, strict=True)])
    for k in (1, 2):
        assert sorted(found.rows[k].tolist()) == list(range(6))
    places = [one.tolist() for one in order]
    everywhere = [places[0].index(0), places[0].index(1)]
    first_two, last_two = found.shared[0], found.shared[2]
    assert found.shared[1].nonzero()[:, 0].tolist() == sorted(everywhere)
    assert first_two.nonzero()[:, 0].tolist() == sorted([*everywhere, places[0].index(5)])
    late = int((found.rows[1] == places[1].index(3)).nonzero())
    assert last_two.nonzero()[:, 0].tolist() == sorted([*everywhere, late])
    assert found.rows[1][everywhere].tolist() == [places[1].index(0), places[1].index(1)]
    assert found.rows[2][everywhere].tolist() == [places[2].index(0), places[2].index(1)]


def test_features_that_all_pairs_share_do_not_narrow_the_interval() -> None:
    marks = torch.arange(400) % 4 == 0
    once, thrice = pooled(marks[None]).estimate(), pooled(marks.expand(3, -1)).estimate()
    assert (thrice.value, thrice.low, thrice.high, thrice.n) == (once.value, once.low, once.high, 400)
    shifted = torch.stack([marks.roll(by) for by in range(3)])
    apart = pooled(shifted).estimate()
    assert apart.high - apart.low < 0.8 * (once.high - once.low)
    assert np.isnan(pooled(marks[None][:0]).estimate().value)


def test_seeds_of_different_sizes_and_rows_without_direction_are_refused() -> None:
    with pytest.raises(SaeSweepError, match="SFR: decoders of 5 and 4 rows"):
        follow_seeds([rows(5, 0), rows(4, 1)])
    silent = rows(5, 0)
    silent[2] = 0
    with pytest.raises(SaeSweepError, match="5 and 4 can be compared; seeds need equally many"):
        follow_seeds([rows(5, 1), silent])


def test_noise_is_uniform_over_the_vocabulary_and_each_sequence_opens_with_bos() -> None:
    found = noise(20_000, 50, vocabulary=40, bos=7, seed=1)
    assert found.shape == (400, 50)
    assert (found[:, 0] == 7).all()
    shares = np.bincount(found[:, 1:].ravel(), minlength=40) / found[:, 1:].size
    assert len(shares) == 40
    assert np.abs(shares - 1 / 40).max() < 0.005
    assert noise(101, 50, 40, 7).shape == (3, 50)
    assert (noise(500, 50, 40, 7, seed=2) != noise(500, 50, 40, 7, seed=3)).any()


class Lookup:
    """A language model whose residuals depend on the token and the layer alone."""

    def __init__(self) -> None:
        self.table = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
        self.passes = 0

    def residuals(self, tokens: Tensor, layers: list[int]) -> dict[int, Tensor]:
        self.passes += 1
        return {layer: self.table[tokens] * (1 + layer) for layer in layers}


class Linear:
    """Latents that are the residual itself."""

    W_dec = torch.eye(8)

    def encode(self, x: Tensor) -> Tensor:
        return x


def test_activity_counts_what_is_above_each_level_without_the_first_position() -> None:
    lm, sequences = Lookup(), noise(900, 9, vocabulary=40, bos=0)
    subjects = {"a": Subject(Linear(), 0), "b": Subject(Linear(), 1)}  # type: ignore[arg-type]
    levels = (0.0, 1.0, 2.5)
    found = activity(subjects, lm, sequences, levels)  # type: ignore[arg-type]
    assert lm.passes == 1
    for name, scale in (("a", 1), ("b", 2)):
        twin = np.zeros((3, 8))
        for row in sequences:
            for token in row[1:]:
                for level, feature in itertools.product(range(3), range(8)):
                    twin[level, feature] += float(lm.table[token, feature]) * scale > levels[level]
        assert found[name].tolist() == (twin / 900).tolist()


def test_ffr_is_the_share_of_features_above_both_constants() -> None:
    shares = torch.tensor([0.0, 0.1, 0.100001, 0.5])
    assert fake(shares).tolist() == [False, False, True, True]
    assert fake(shares, 0.2).tolist() == [False, False, False, True]
