"""The position test, against one that loops over features, permutations and resamples."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sae_sweep.analysis import positions as module
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.firing import Activations, Firing
from sae_sweep.analysis.positions import position_test
from sae_sweep.config import SaeSweepError
from tests.analysis.test_firing import omega_squared

N, S, D = 40, 12, 9
"""Sequences, positions, features: 0 follows the position, 1 the sequence, 2 fires once, 3 never varies,
the last never fires after position 0."""


@pytest.fixture
def f() -> torch.Tensor:
    """Latents [n, s, d_sae]."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(N, S, D, generator=generator).sub(0.4).relu() * 3
    f[..., 0] += torch.arange(S) * 0.4
    f[..., 1] *= torch.arange(N)[:, None] % 4
    f[..., 2], f[3, 5, 2] = 0, 2
    f[..., 3] = 0.1
    f[..., -1], f[:, 0, -1] = 0, 5
    return f


@pytest.fixture
def keep() -> torch.Tensor:
    """Where a token counts."""
    keep = torch.rand(N, S, generator=torch.Generator().manual_seed(2)) > 0.2
    keep[3, 5] = True
    return keep


def codes(f: torch.Tensor, keep: torch.Tensor, sequences: torch.Tensor | None = None) -> Codes:
    found = Codes(f.shape[-1])
    numbers, positions = keep.nonzero(as_tuple=True)
    numbers = numbers if sequences is None else sequences[numbers]
    found.update(Activations.of(f[keep]), positions.int(), numbers)
    return found


def masked(f: torch.Tensor, keep: torch.Tensor) -> np.ndarray:
    """Latents in float64 without position 0, NaN where a token does not count."""
    return f.double().masked_fill(~keep[..., None], math.nan).numpy()[:, 1:]


def test_the_share_is_that_of_the_statistics_by_feature(f, keep):
    keep[:, 7] = False
    found, firing = (
        position_test(codes(f, keep), S, permutations=2, resamples=2),
        Firing(D, S, torch.device("cpu")),
    )
    firing.update(Activations.of(f[keep]), keep.nonzero()[:, 1])
    expected = firing.by_feature().position_share
    torch.testing.assert_close(found.position_share, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    values = np.delete(masked(f, keep), 7 - 1, axis=1)
    for feature in (0, 1, 2, 4, 5, 6, 7):
        assert found.position_share[feature].item() == pytest.approx(
            omega_squared(values[..., feature]), rel=1e-9
        )
    assert found.live.tolist() == [True] * (D - 1) + [False]
    assert found.position_share.isnan().tolist() == found.null_maximum.isnan().tolist()
    assert found.position_share.isnan().tolist() == [False] * 3 + [True] + [False] * 4 + [True]
    assert (found.tokens, found.sequences) == (int(keep[:, 1:].sum()), N)


def test_the_null_equals_a_naive_one_with_the_same_permutations(f, keep, monkeypatch):
    drawn = []

    def permuted(self, generator):
        drawn.append(original(self, generator))
        return drawn[-1]

    original = module._ByFeature.permuted
    monkeypatch.setattr(module._ByFeature, "permuted", permuted)
    found = position_test(codes(f, keep), S, permutations=5, resamples=2)
    active = f[:, 1:][keep[:, 1:]].double().numpy()
    numbers, positions = keep[:, 1:].nonzero(as_tuple=True)
    largest = np.full(D, -np.inf)
    for places in drawn:
        for number in range(N):  # the same positions in each sequence
            ours = numbers == number
            assert sorted(places[ours]) == sorted(positions[ours].tolist())
        values = np.full((N, S - 1, D), np.nan)
        values[numbers, places] = active
        for feature in (0, 1, 2, 4):
            largest[feature] = max(largest[feature], omega_squared(values[..., feature]))
    assert len(drawn) == 5
    assert len({tuple(places) for places in drawn}) == 5
    assert found.null_maximum[[0, 1, 2, 4]].tolist() == pytest.approx(largest[[0, 1, 2, 4]])


def test_the_interval_equals_that_of_a_naive_bootstrap(f, keep, monkeypatch):
    monkeypatch.setattr(module, "_RESAMPLES", 4)  # several rounds
    chosen = np.array([np.random.default_rng(i).integers(0, N, N) for i in range(10)])
    counts = np.array([np.bincount(row, minlength=N) for row in chosen])

    class Generator:
        def multinomial(self, n, chances, size):
            nonlocal counts
            part, counts = counts[:size], counts[size:]
            return part

    by_feature = module._ByFeature.of(codes(f, keep), S)
    least = torch.full((D,), 0.02, dtype=torch.float64)
    found = module._resampled_counts(by_feature, least, 10, Generator(), lambda: None)
    values = masked(f, keep)
    expected = []
    for row in chosen:
        shares = [_twice_corrected(values[row][..., feature]) for feature in (0, 1, 2, 4, 5, 6, 7)]
        expected.append(sum(share > 0.02 for share in shares))
    assert len(set(expected)) > 1
    assert found.tolist() == expected


def _twice_corrected(values: np.ndarray) -> float:
    """omega² less the noise of a second draw."""
    groups = [column[~np.isnan(column)] for column in values.T]
    everything = np.concatenate(groups)
    if everything.std() == 0:
        return math.nan
    between = sum(len(group) * (group.mean() - everything.mean()) ** 2 for group in groups)
    total = ((everything - everything.mean()) ** 2).sum()
    within = (total - between) / (len(everything) - len(groups))
    return (between - 2 * (len(groups) - 1) * within) / (total + within)


def test_a_feature_that_follows_position_passes_and_others_do_not(f, keep):
    found = position_test(codes(f, keep), S)
    assert found.passes.tolist() == [True] + [False] * (D - 1)
    assert found.share == 1 / (D - 1)
    assert found.low <= found.share <= found.high
    shuffled = torch.stack([f[:, 1:][i, torch.randperm(S - 1)] for i in range(N)])
    assert not position_test(codes(torch.cat([f[:, :1], shuffled], 1), keep), S).passes.any()


def test_a_feature_that_fires_once_never_passes_however_short_the_text():
    f = torch.zeros(2, 6, 3)
    f[0, 2, 0] = f[0, 3, 1] = f[1, 3, 1] = 1  # feature 1 twice, at one position
    found = position_test(codes(f, f[..., 0] == f[..., 0]), 6)
    assert found.position_share[0] == pytest.approx(found.null_maximum[0])
    assert not found.passes.any()


def test_the_interval_covers_the_share_of_the_text_that_was_drawn_from():
    """Features of omega² around the threshold: the interval is not off to one side."""
    positions, features = 17, 60
    generator = torch.Generator().manual_seed(1)
    wave = torch.sin(torch.arange(positions) * 2 * math.pi / (positions - 1)) * 2**0.5
    share = torch.linspace(0.02, 0.2, features)
    chance = 0.5 + wave[:, None] * share.sqrt() / 2  # the variance of its mean is a `share` of all of 0.25
    inside = 0
    for seed in range(10):
        f = (torch.rand(40, positions, features, generator=generator) < chance).float()
        found = position_test(
            codes(f, torch.ones(40, positions).bool()), positions, permutations=5, seed=seed
        )
        assert found.low <= found.share <= found.high
        inside += found.low <= (share > 0.1).float().mean() <= found.high
    assert inside >= 8


@pytest.mark.parametrize(
    "limits",
    [{"_CELLS": 2 * S, "_ELEMENTS": 2 * S * 9, "_TOKENS": 2 * N * S}, {"_NONZEROS": 300}, {"_NONZEROS": 1}],
)
def test_blocks_and_batches_change_nothing(f, keep, monkeypatch, limits):
    whole = position_test(codes(f, keep), S, permutations=7, resamples=9)
    for name, limit in limits.items():
        monkeypatch.setattr(module, name, limit)
    other = position_test(codes(f, keep), S, permutations=7, resamples=9)
    for field in dataclasses.fields(whole):
        ours, theirs = getattr(whole, field.name), getattr(other, field.name)
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), equal_nan=True)


def test_numbers_of_sequences_and_their_order_do_not_matter(f, keep):
    found = position_test(codes(f, keep), S, permutations=3, resamples=3)
    numbered = position_test(codes(f, keep, 10**12 + 7 * torch.arange(N)), S, permutations=3, resamples=3)
    backwards = position_test(codes(f, keep, 100 - torch.arange(N)), S, permutations=3, resamples=3)
    assert torch.equal(found.null_maximum.nan_to_num(), numbered.null_maximum.nan_to_num())
    torch.testing.assert_close(found.position_share, backwards.position_share, equal_nan=True)
    assert backwards.passes.tolist() == found.passes.tolist()


def test_the_seed_gives_the_draws(f, keep):
    ours, same, other = (
        position_test(codes(f, keep), S, permutations=3, resamples=3, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(ours.null_maximum.nan_to_num(), same.null_maximum.nan_to_num())
    assert not torch.equal(ours.null_maximum.nan_to_num(), other.null_maximum.nan_to_num())


def test_without_live_features_the_share_is_undefined(f, keep):
    found = position_test(codes(torch.zeros_like(f), keep), S, permutations=2, resamples=2)
    assert not found.live.any()
    assert not found.passes.any()
    assert all(math.isnan(number) for number in (found.share, found.low, found.high))


def test_too_little_text_and_impossible_numbers_are_refused(f, keep):
    for tokens in (keep & False, keep & (torch.arange(N) == 4)[:, None], keep & (torch.arange(S) == 0)):
        with pytest.raises(SaeSweepError, match=r"there (is 1|are 0): give more text"):
            position_test(codes(f, tokens), S)
    with pytest.raises(SaeSweepError, match="positions=5, and a token stands at 11"):
        position_test(codes(f, keep), 5)
    for name in ("permutations", "resamples"):
        with pytest.raises(SaeSweepError, match=f"{name}=0 must be at least 1"):
            position_test(codes(f, keep), S, **{name: 0})


def test_it_can_be_stopped(f, keep):
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        position_test(codes(f, keep), S, between=stop)
