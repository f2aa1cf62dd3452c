import dataclasses
import math

import pytest
import torch

from sae_sweep.analysis.bootstrap import Sample, bootstrap_interval
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.measured import Subject, measure_pairs
from sae_sweep.analysis.measures import MEASURES, UnitRows, feature_values
from sae_sweep.analysis.neighbours import THRESHOLDS
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.config import MatchingConfig, SaeSweepError

WIDTH = 24


class Weights:
    def __init__(self, decoder, encoder):
        self.W_dec, self.W_enc = decoder, encoder.T


def subject(name, rows, *, init=0.0, densities=None, encoder=None, **keys):
    entry = ComparisonEntry(name, keys, rows, init, densities)
    weights = Weights(rows, rows if encoder is None else encoder)
    start = random_rows(len(rows), rows.shape[1], 50 + len(name))
    return Subject(entry, lambda: weights, lambda: start)


def noisy(rows, amount, seed):
    return torch.nn.functional.normalize(rows + amount * random_rows(*rows.shape, seed), dim=1)


COMMON = random_rows(30, WIDTH, 900)
A = subject("a", COMMON, seed=1, dataset="x")
B = subject("b", torch.cat([noisy(COMMON[:20], 0.4, 901), random_rows(6, WIDTH, 902)]), seed=2, dataset="x")
C = subject("c", noisy(COMMON, 0.8, 903), seed=1, dataset="y")
ALL = MatchingConfig(measures="all", nulls=["random", "initial"])


def values(found, **wanted):
    rows = [row for row in found if all(getattr(row, key) == value for key, value in wanted.items())]
    return {(row.measure.measure, row.measure.direction): row.measure for row in rows}


def test_a_pair_has_every_measure_in_both_directions_beside_each_null():
    found = measure_pairs([A, B], [(0, 1)], ALL)
    assert {row.chance for row in found.pairs} == {"random", "initial"}
    assert [row.features for row in found.pairs] == ["all"] * len(found.pairs)
    rows = values(found.pairs, chance="random")
    expected = feature_values(UnitRows(A.entry.decoder, A.entry.decoder), UnitRows(*[B.entry.decoder] * 2))
    assert {name for name, _ in rows} == set(MEASURES)
    for name, sides in expected.items():
        assert rows[name, "a_in_b"].found.value == pytest.approx(sides.a.mean().item(), abs=1e-6)
        assert rows[name, "b_in_a"].found.value == pytest.approx(sides.b.mean().item(), abs=1e-6)
    ratio = rows["ratio", "a_in_b"]
    assert (ratio.found.value, ratio.found.n, ratio.null.value) == (pytest.approx(20 / 30), 30, 0)
    assert ratio.difference.low > 0
    start = feature_values(UnitRows(A.entry.decoder), UnitRows(B.initial()), measures=["mmcs"])["mmcs"].a
    assert values(found.pairs, chance="initial")["mmcs", "a_in_b"].null.value == pytest.approx(
        start.mean().item()
    )


def test_intervals_are_those_of_the_bootstrap_with_one_draw_per_sae():
    mmcs = values(measure_pairs([A, B], [(0, 1)], ALL).pairs, chance="random")["mmcs", "a_in_b"]
    best = (A.entry.decoder @ B.entry.decoder.T).amax(1)
    assert (mmcs.found.low, mmcs.found.high) == pytest.approx(bootstrap_interval(best, seed=0), abs=1e-6)


def test_a_key_is_the_mean_of_its_trained_pairs_and_both_directions():
    late = subject("late", noisy(COMMON, 0.1, 904), init=0.5, seed=3, dataset="x")
    found = measure_pairs([A, B, C, late], [(0, 1), (0, 2), (0, 3)], MatchingConfig())
    seed = next(row for row in found.keys if row.key == "seed" and row.measure.measure == "ratio")
    pair = values(found.pairs, a="a", b="b", chance="random")
    assert (seed.pairs, seed.undertrained) == (2, 1)
    assert seed.measure.found.value == pytest.approx(
        (pair["ratio", "a_in_b"].found.value + pair["ratio", "b_in_a"].found.value) / 2
    )
    assert {row.key for row in found.keys} == {"seed", "dataset"}
    curve = next(curve for curve in found.curves if curve.key == "seed")
    at = round((0.7 - 0.3) / 0.01)
    assert curve.found.share[at] == pytest.approx(seed.measure.found.value)
    assert curve.nulls["random"].share[0] < 1
    assert curve.nulls["random"].share[-1] == 0


def test_with_three_seeds_a_key_has_an_interval_over_them():
    third = subject("third", noisy(COMMON, 0.6, 907), seed=3, dataset="x")
    rows = measure_pairs([A, B, third], [(0, 1), (0, 2), (1, 2)], MatchingConfig()).keys
    (seed,) = (row for row in rows if row.key == "seed" and row.measure.measure == "mmcs")
    assert seed.over_seeds.n == 3
    assert seed.over_seeds.value == pytest.approx(seed.measure.found.value)
    assert seed.over_seeds.low < seed.over_seeds.value < seed.over_seeds.high
    two = measure_pairs([A, B], [(0, 1)], MatchingConfig()).keys
    assert math.isnan(two[0].over_seeds.low)


def test_dead_features_are_left_out_a_second_time():
    densities = torch.ones(30)
    densities[20:] = 0
    a = dataclasses.replace(A, entry=dataclasses.replace(A.entry, densities=densities))
    b = dataclasses.replace(B, entry=dataclasses.replace(B.entry, densities=torch.ones(26)))
    found = measure_pairs([a, b], [(0, 1)], MatchingConfig())
    everything, live = (values(found.pairs, chance="random", features=kind) for kind in ("all", "live"))
    assert everything["ratio", "a_in_b"].found.value == pytest.approx(20 / 30)
    assert (live["ratio", "a_in_b"].found.value, live["ratio", "a_in_b"].found.n) == (1, 20)
    assert live["ratio", "b_in_a"].found.n == 26


def test_rows_that_cannot_be_compared_are_left_out_and_said():
    rows = COMMON.clone()
    rows[3], rows[4, 0] = 0, math.nan
    found = measure_pairs([subject("odd", rows), A], [(0, 1)], ALL)
    assert found.left_out == {"odd": "1 all zero, 1 NaN or inf"}
    assert values(found.pairs, chance="random")["ratio", "a_in_b"].found.n == 28
    empty = subject("empty", torch.zeros(3, WIDTH))
    with pytest.raises(
        SaeSweepError, match=r"empty has no features to compare: 3 all zero \(a is a, b is em"
    ):
        measure_pairs([A, empty], [(0, 1)], MatchingConfig())


@pytest.mark.parametrize("matrix", ["encoder", "both"])
def test_other_rows_can_be_compared(matrix):
    a = subject("a", COMMON, encoder=random_rows(30, WIDTH, 905))
    b = subject("b", COMMON, encoder=random_rows(30, WIDTH, 906))
    settings = MatchingConfig(measures="all", matrix=matrix)
    rows = values(measure_pairs([a, b], [(0, 1)], settings).pairs, chance="random")
    assert "shared" not in {name for name, _ in rows}
    assert rows["mmcs", "a_in_b"].found.value == pytest.approx(
        {"encoder": (a.load().W_enc.T @ b.load().W_enc).amax(1).mean().item(), "both": 0.5}[matrix], abs=0.07
    )


def test_neurons_are_compared_by_their_weights_in_all_features():
    found = measure_pairs([A, C], [(0, 1)], MatchingConfig(side="neurons", nulls=["rotated"]))
    assert {row.measure.found.n for row in found.pairs} == {WIDTH}
    assert {row.chance for row in found.pairs} == {"rotated"}


def test_tokens_are_a_null_where_residuals_are_given():
    settings = MatchingConfig(nulls=["tokens"], tokens=100)
    inputs = torch.cat([COMMON] * 2)
    known = measure_pairs([A, B], [(0, 1)], settings, residuals={"a": inputs, "b": inputs})
    assert values(known.pairs, chance="tokens")["mmcs", "a_in_b"].null.value > 0.7
    assert {row.chance for row in measure_pairs([A, B], [(0, 1)], settings).pairs} == {""}


def test_samples_of_equal_seeds_draw_the_same_features():
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    first, second = Sample.of(values, 4), Sample.of(values + 1, 4)
    gap = second - first
    assert gap.draws.std() < 1e-6
    assert (first + second).divided(2).mean == pytest.approx(values.double().mean(0) + 0.5)
    assert math.isnan((first - Sample.nothing(3)).estimate().value)


def with_densities(one, densities):
    return dataclasses.replace(one, entry=dataclasses.replace(one.entry, densities=densities))


def test_rates_add_up_to_the_mutual_matches_of_live_features():
    a = with_densities(A, torch.logspace(-4, -1, 30))
    b = with_densities(B, torch.logspace(-3, -2, 26))
    found = measure_pairs([a, b], [(0, 1)], MatchingConfig())
    (rates,) = found.rates
    (mutual,) = (r for r in found.keys if r.measure.measure == "mutual" and r.features == "live")
    assert rates.features.sum().item() == pytest.approx(1)
    assert (rates.features * rates.matched).nansum().item() == pytest.approx(mutual.measure.found.value)
    assert (rates.low <= rates.matched).logical_or(rates.matched.isnan()).all()


def test_each_kind_of_features_has_a_null_of_its_own():
    densities = torch.ones(30)
    densities[:20] = 0
    found = measure_pairs([with_densities(A, densities), with_densities(C, torch.ones(30))], [(0, 1)], ALL)
    everything, live = (values(found.pairs, chance="random", features=kind) for kind in ("all", "live"))
    assert everything["mmcs", "a_in_b"].null.n == 30
    assert live["mmcs", "a_in_b"].null.n == 10
    assert everything["mmcs", "b_in_a"].null.value > live["mmcs", "b_in_a"].null.value  # 10 rows for 30


def test_an_encoder_starts_with_the_decoders_directions():
    b = dataclasses.replace(subject("b", COMMON), initial=lambda: COMMON)
    settings = MatchingConfig(matrix="both", nulls=["initial"])
    found = values(measure_pairs([subject("a", COMMON), b], [(0, 1)], settings).pairs, chance="initial")
    assert found["mmcs", "a_in_b"].null.value == pytest.approx(1)


def test_a_curve_is_the_share_strictly_above_each_threshold():
    half = torch.zeros(4, 4)
    half[:, 0] = torch.tensor([1.0, 0.5, 0.745, 0.28])
    half[:, 1] = (1 - half[:, 0].square()).sqrt()
    axis = torch.eye(4)[:1]
    found = measure_pairs([subject("a", half), subject("b", axis)], [(0, 1)], MatchingConfig(nulls=[]))
    (curve,) = found.curves
    best = torch.tensor([[1.0, 0.5, 0.745, 0.28]])
    expected = ((torch.tensor(THRESHOLDS) < best.T).double().mean(0) + 1) / 2  # the axis is always found
    assert (len(THRESHOLDS), THRESHOLDS[0], THRESHOLDS[-1]) == (70, 0.3, 0.99)
    assert curve.found.share.numpy() == pytest.approx(expected.numpy())
    assert (curve.found.low <= curve.found.share + 1e-9).all()
    assert (curve.found.share <= curve.found.high + 1e-9).all()
