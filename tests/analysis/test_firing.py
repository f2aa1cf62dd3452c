"""Statistics of how features fire, against naive ones that hold every activation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sae_sweep.analysis.contexts import NOTHING, Contexts, Excerpts, Window, random_priorities, tenth_of
from sae_sweep.analysis.firing import Activations, Firing, columns
from sae_sweep.analysis.firing import omega_squared as omega_squared_of_sums
from sae_sweep.analysis.quantiles import RELATIVE_ERROR, FeatureQuantiles
from sae_sweep.analysis.top_tokens import TokenSums

CPU = torch.device("cpu")
N, S, D, V = 24, 10, 7, 13
"""Sequences, positions, features (the last never fires), vocabulary."""


@pytest.fixture
def f() -> torch.Tensor:
    """Latents [n, s, d_sae], a third of them active; feature 0 depends on the position."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(N, S, D, generator=generator).sub(0.4).relu() * 3
    f[..., 0] += torch.arange(S) * 0.4
    f[..., -1] = 0
    return f


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, V, (N, S), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def keep() -> torch.Tensor:
    """Where a token counts."""
    return torch.rand(N, S, generator=torch.Generator().manual_seed(2)) > 0.2


def firing(f: torch.Tensor, keep: torch.Tensor, batches: int = 1) -> Firing:
    found = Firing(D, S, CPU)
    for part, mask in zip(f.chunk(batches), keep.chunk(batches), strict=True):
        found.update(Activations.of(part[mask]), mask.nonzero()[:, 1])
    return found


def masked(f: torch.Tensor, keep: torch.Tensor) -> np.ndarray:
    """Latents in float64, NaN where a token does not count."""
    return f.double().masked_fill(~keep[..., None], math.nan).numpy()


def test_by_position_equals_a_naive_computation(f, keep):
    found, values = firing(f, keep).by_position(), masked(f, keep)
    for position in range(S):
        here = values[:, position][~np.isnan(values[:, position, 0])]
        active = here[here != 0]
        assert found.tokens[position] == len(here)
        assert found.active[position] == len(active)
        assert found.mean[position].item() == pytest.approx(active.mean(), rel=1e-6)
        assert found.std[position].item() == pytest.approx(active.std(), rel=1e-6)
        assert found.l0[position].item() == pytest.approx((here != 0).sum(1).mean())
        assert found.density[position].item() == pytest.approx((here != 0).mean())


def test_by_feature_equals_a_naive_computation(f, keep):
    found, values = firing(f, keep).by_feature(), masked(f, keep)
    for feature in range(D - 1):
        here = values[..., feature]
        active = here[(here != 0) & ~np.isnan(here)]
        assert found.active[feature] == len(active)
        assert found.density[feature].item() == pytest.approx(len(active) / keep.sum().item())
        assert found.mean[feature].item() == pytest.approx(active.mean(), rel=1e-6)
        assert found.std[feature].item() == pytest.approx(active.std(), rel=1e-6)
        assert found.max[feature].item() == pytest.approx(active.max(), rel=1e-6)
        shares = np.nanmean(here, 0) / np.nanmean(here, 0).sum()
        entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
        assert found.position_entropy[feature].item() == pytest.approx(entropy, rel=1e-6)
        assert found.position_share[feature].item() == pytest.approx(omega_squared(here[:, 1:]), abs=1e-6)


def omega_squared(values: np.ndarray) -> float:
    """omega² of the columns as groups, from its definition."""
    groups = [column[~np.isnan(column)] for column in values.T]
    everything = np.concatenate(groups)
    between = sum(len(group) * (group.mean() - everything.mean()) ** 2 for group in groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    within /= len(everything) - len(groups)
    total = ((everything - everything.mean()) ** 2).sum()
    return (between - (len(groups) - 1) * within) / (total + within)


def test_a_feature_that_follows_the_position_is_told_from_one_that_does_not(f, keep):
    share = firing(f, torch.ones_like(keep)).by_feature().position_share
    assert share[0] > 0.2
    assert share[1:-1].abs().max() < 0.1


def test_what_rounding_leaves_of_a_feature_that_fires_only_at_the_first_position_is_no_share():
    counts, sums = torch.full((3, 1), 4.0).double(), torch.zeros(3, 2).double()
    assert omega_squared_of_sums(counts, sums, torch.tensor([0, 1e-13]).double()).isnan().all()


def test_a_dead_feature_is_undefined_and_not_zero(f, keep):
    found = firing(f, keep).by_feature()
    assert (found.active[-1], found.density[-1]) == (0, 0)
    for name in ("mean", "std", "max", "position_entropy", "position_share"):
        assert columns(found)[name][-1].isnan(), name
        assert not columns(found)[name][:-1].isnan().any(), name


@pytest.mark.parametrize("batches", [2, 5])
def test_merged_parts_and_batches_equal_one_pass(f, keep, batches):
    whole = firing(f, keep)
    merged = Firing(D, S, CPU)
    for part, mask in zip(f.chunk(batches), keep.chunk(batches), strict=True):
        merged.merge(firing(part, mask))
    for other in (merged, firing(f, keep, batches)):
        for ours, theirs in (
            (whole.by_feature(), other.by_feature()),
            (whole.by_position(), other.by_position()),
        ):
            for name, values in columns(ours).items():
                torch.testing.assert_close(
                    values, columns(theirs)[name], equal_nan=True, rtol=1e-12, atol=1e-12
                )


def test_a_position_without_tokens_is_undefined(f, keep):
    keep[:, 0] = False
    found = firing(f, keep).by_position()
    assert found.tokens[0] == 0
    assert found.mean[0].isnan()
    assert found.l0[0].isnan()
    assert not firing(f, keep).by_feature().position_share[:-1].isnan().any()


def quantiles(f: torch.Tensor, most: int = 2**20) -> FeatureQuantiles:
    found = FeatureQuantiles(D, most)
    for part in f.chunk(4):
        _, features, values = Activations.of(part.flatten(0, 1))
        found.update(features, values)
    return found


SHARES = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]


def test_quantiles_that_fit_are_exact(f):
    found = quantiles(f)
    assert found.exact
    for feature in range(D - 1):
        active = f[..., feature][f[..., feature] != 0].double().numpy()
        assert found.quantiles(SHARES)[:, feature].tolist() == pytest.approx(np.quantile(active, SHARES))
    assert found.quantiles(SHARES)[:, -1].isnan().all()


def test_quantiles_that_do_not_fit_are_within_their_error(f):
    found = quantiles(f, most=50)
    assert not found.exact
    for feature in range(D - 1):
        active = f[..., feature][f[..., feature] != 0].double().numpy()
        assert found.quantiles(SHARES)[:, feature].tolist() == pytest.approx(
            np.quantile(active, SHARES), rel=1.001 * RELATIVE_ERROR
        )
    assert found.quantiles(SHARES)[:, -1].isnan().all()


def test_quantiles_of_a_feature_that_fires_twice_lie_between_its_activations_in_bins_too():
    found = FeatureQuantiles(1, 0)
    found.update(torch.tensor([0, 0]), torch.tensor([1.0, 9.0]))
    assert not found.exact
    assert found.quantiles([0.25, 0.5])[:, 0].tolist() == pytest.approx([3, 5], rel=1.001 * RELATIVE_ERROR)


@pytest.mark.parametrize(("ours", "theirs"), [(2**20, 2**20), (50, 50), (50, 2**20), (2**20, 50)])
def test_merged_quantiles_equal_one_pass(f, ours, theirs):
    merged = quantiles(f[:11], ours)
    merged.merge(quantiles(f[11:], theirs))
    whole = quantiles(f, min(ours, theirs))
    assert merged.exact == whole.exact
    assert torch.equal(merged.quantiles(SHARES)[:, :-1], whole.quantiles(SHARES)[:, :-1])


def test_quantiles_without_any_value():
    for most in (5, 0):
        assert FeatureQuantiles(3, most).quantiles([0.5]).isnan().all()


def contexts(f, tokens, most=3, batches=1, first=0, seed=None, one_per_sequence=True) -> Contexts:
    found = Contexts(D, most, Window(2, 1), CPU, one_per_sequence=one_per_sequence)
    for part, ids in zip(f.chunk(batches), tokens.chunk(batches), strict=True):
        one = Activations.of(part.flatten(0, 1))
        priorities = one.values
        if seed is not None:
            priorities = random_priorities(seed, one.rows // S + first, one.rows % S, one.features)
        found.update(one, priorities, ids, first)
        first += len(part)
    return found


def of_feature(found: Excerpts, feature: int) -> Excerpts:
    return Excerpts(*(part[found.features == feature] for part in found))


def test_top_contexts_are_the_best_of_each_sequence(f, tokens):
    everything = contexts(f, tokens, batches=4).excerpts()
    for feature in range(D - 1):
        found = of_feature(everything, feature)
        best = sorted(((f[n, :, feature].max().item(), n) for n in range(N)), reverse=True)[:3]
        assert found.ranks.tolist() == [0, 1, 2]
        assert found.priorities.tolist() == pytest.approx([value for value, _ in best])
        assert found.sequences.tolist() == [n for _, n in best]
        for rank, (_, n) in enumerate(best):
            at = int(f[n, :, feature].argmax())
            assert found.positions[rank] == at
            for place, position in enumerate(range(at - 2, at + 2)):
                inside = 0 <= position < S
                assert found.tokens[rank, place] == (tokens[n, position] if inside else NOTHING)
                assert found.activations[rank, place] == (f[n, position, feature] if inside else 0)
    assert D - 1 not in everything.features


@pytest.mark.parametrize("one_per_sequence", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_contexts_depend_neither_on_batches_nor_on_parts(f, tokens, seed, one_per_sequence):
    f[3:9] = f[0:6].clone()  # ties
    keys = {"seed": seed, "one_per_sequence": one_per_sequence}
    whole = contexts(f, tokens, **keys).excerpts()
    for cut in (1, 4, 10, 23):
        merged = contexts(f[:cut], tokens[:cut], **keys)
        merged.merge(contexts(f[cut:], tokens[cut:], first=cut, **keys))
        for other in (contexts(f, tokens, batches=cut, **keys), merged):
            for name, ours, theirs in zip(whole._fields, whole, other.excerpts(), strict=True):
                assert torch.equal(ours, theirs), name


def test_a_random_sample_is_uniform_over_the_activations():
    """Of 20 sequences with one activation and one with 20, each activation is sampled about as often."""
    one = torch.zeros(21, 20, 200)
    one[:20, 4] = 1
    one[20] = 1
    found = Contexts(200, 4, Window(), CPU, one_per_sequence=False)
    activations = Activations.of(one.flatten(0, 1))
    rows, features, _ = activations
    chance = random_priorities(3, rows // 20, rows % 20, features)
    found.update(activations, chance, torch.zeros(21, 20).long(), 0)
    kept = found.excerpts()
    counts = torch.bincount(20 * kept.sequences + kept.positions, minlength=420)
    counts = counts[one[..., 0].flatten() != 0]
    assert counts.sum() == 800
    assert ((counts - 20).square() / 20).sum() < 39 + 4 * (2 * 39) ** 0.5  # chi-squared, 4 deviations


def test_fewer_activations_than_places_leave_places_empty(f, tokens):
    assert len(of_feature(contexts(f[:2], tokens[:2]).excerpts(), 0).sequences) == 2
    assert len(contexts(torch.zeros_like(f), tokens).excerpts().features) == 0


@pytest.mark.parametrize("most", [1, 4])
def test_a_sample_takes_as_many_from_each_decile(f, tokens, most):
    found = contexts(f, tokens, most=1000, seed=1, one_per_sequence=False)
    deciles = quantiles(f).quantiles([tenth / 10 for tenth in range(1, 10)])
    sample = found.by_decile(deciles, most)
    assert D - 1 not in sample.features
    for feature in range(D - 1):
        one = of_feature(sample, feature)
        values = f[..., feature][f[..., feature] != 0].double()
        tenths = np.searchsorted(deciles[:, feature].numpy(), one.activations[:, 2].double().numpy()) + 1
        levels = deciles[:, one.features]
        assert tenth_of(one.activations[:, 2], levels).tolist() == tenths.tolist()
        assert one.ranks.tolist() == list(range(len(tenths)))
        assert tenths.tolist() == sorted(tenths)
        for tenth in range(1, 11):
            inside = np.searchsorted(deciles[:, feature].numpy(), values.numpy()) + 1 == tenth
            assert (tenths == tenth).sum() == min(most, inside.sum())
        for place in range(len(tenths)):
            assert one.activations[place, 2] == f[one.sequences[place], one.positions[place], feature]


def test_a_sample_from_deciles_is_uniform_within_each():
    """400 features that fire alike: each of their 40 activations is taken about as often."""
    values = torch.arange(1, 41).float()[:, None, None].expand(40, 1, 400)
    found = Contexts(400, 40, Window(0, 0), CPU, one_per_sequence=False)
    activations = Activations.of(values.flatten(0, 1))
    rows, features, _ = activations
    chance = random_priorities(7, rows, torch.zeros_like(rows), features)
    found.update(activations, chance, torch.zeros(40, 1).long(), 0)
    deciles = torch.quantile(torch.arange(1, 41).double(), torch.arange(1, 10).double() / 10)
    counts = torch.bincount(found.by_decile(deciles[:, None].expand(9, 400), 1).sequences, minlength=40)
    assert (counts.view(10, 4).sum(1) == 400).all()
    assert ((counts - 100).square() / 100).sum() < 30 + 4 * (2 * 30) ** 0.5


def sums(f, tokens, most=2**20, batches=3) -> TokenSums:
    found = TokenSums(D, V, most)
    for part, ids in zip(f.chunk(batches), tokens.chunk(batches), strict=True):
        rows, features, values = Activations.of(part.flatten(0, 1))
        found.update(features, ids.flatten()[rows], values)
    return found


def test_token_sums_equal_a_naive_computation(f, tokens):
    ids, shares = sums(f, tokens).shares()
    top = sums(f, tokens).by_mean(2, at_least=2)
    for feature in range(D - 1):
        values = f[..., feature].double()
        by_token = [values[tokens == token].sum().item() for token in range(V)]
        assert ids[feature] == int(np.argmax(by_token))
        assert shares[feature].item() == pytest.approx(max(by_token) / sum(by_token), rel=1e-6)
        means = []
        for token in range(V):
            active = values[(tokens == token) & (values != 0)]
            means.append(active.mean().item() if len(active) >= 2 else -1)
        best = np.argsort(means)[::-1][:2]
        assert top.ids[feature].tolist() == best.tolist()
        assert top.means[feature].tolist() == pytest.approx([means[token] for token in best], rel=1e-6)
        assert top.counts[feature, 0] == ((tokens == best[0]) & (values != 0)).sum()
    assert ids[-1] == -1
    assert shares[-1].isnan()
    assert (top.ids[-1] == -1).all()


def test_merged_token_sums_equal_one_pass(f, tokens):
    merged = sums(f[:7], tokens[:7])
    merged.merge(sums(f[7:], tokens[7:]))
    whole = sums(f, tokens)
    assert torch.equal(merged.shares()[0], whole.shares()[0])
    torch.testing.assert_close(merged.shares()[1], whole.shares()[1], equal_nan=True)


def test_pairs_that_do_not_fit_are_dropped_within_the_said_bound(f, tokens):
    whole, found = sums(f, tokens), sums(f, tokens, most=40, batches=12)
    whole.shares(), found.shares()  # adds up what waits
    assert whole.dropped == 0
    assert found.dropped > 0
    for key, lost in zip(found._keys.tolist(), found._sums.tolist(), strict=True):
        true = whole._sums[whole._keys == key].item()
        assert true - found.dropped - 1e-9 <= lost <= true + 1e-9


def test_dropped_pairs_still_count_in_a_features_whole_activation(f, tokens):
    share, found = sums(f, tokens).shares()[1], sums(f, tokens, most=40, batches=12)
    shares = found.shares()[1]
    assert found.dropped > 0
    whole = f.double().sum((0, 1))
    torch.testing.assert_close(shares.isnan(), share.isnan())
    assert (shares <= share + 1e-9)[whole > 0].all()
    assert (shares >= share - found.dropped / whole - 1e-9)[whole > 0].all()


def test_a_rare_feature_keeps_a_token_where_pairs_are_dropped():
    found = TokenSums(2, 100, 20)
    found.update(torch.tensor([1]), torch.tensor([7]), torch.tensor([0.01]))
    found.update(torch.zeros(100).long(), torch.arange(100), torch.ones(100))
    tokens, shares = found.shares()
    assert tokens[1] == 7
    assert shares.tolist() == pytest.approx([0.01, 1])


def test_random_priorities_need_no_float64_which_an_apple_gpu_lacks():
    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert getattr(out, "dtype", None) != torch.float64
            return out

    number = torch.arange(100)
    with NoFloat64():
        found = random_priorities(3, number, number, number)
    assert found.dtype == torch.float32
    assert len(found.unique()) == 100


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**40))
def test_random_priorities_are_strictly_between_0_and_1(seed, sequence):
    number = random_priorities(seed, *(torch.tensor([value]) for value in (sequence, 3, 5)))
    assert 0 < number.item() < 1
