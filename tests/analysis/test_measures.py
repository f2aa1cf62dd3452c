import math

import pytest
import torch

from sae_sweep.analysis.assignment import assign, shared, soft_match
from sae_sweep.analysis.bootstrap import estimate_difference
from sae_sweep.analysis.dictionaries import random_rows, rotated_rows
from sae_sweep.analysis.matching import match
from sae_sweep.analysis.measures import MEASURES, UnitRows, feature_values, measure_table
from sae_sweep.config import SaeSweepError


def noisy(rows, amount, seed):
    return torch.nn.functional.normalize(rows + amount * random_rows(*rows.shape, seed), dim=1)


A = UnitRows(random_rows(40, 24, 0), random_rows(40, 24, 1))
B = UnitRows(
    torch.cat([noisy(A.unit[:20], 0.3, 2), random_rows(12, 24, 3)]),
    torch.cat([noisy(A.encoder[:20], 1.2, 4), random_rows(12, 24, 5)]),
)


def test_each_measure_is_that_of_its_matcher():
    found = feature_values(A, B)
    assert list(found) == list(MEASURES)
    means = {name: (values.a.mean().item(), values.b.mean().item()) for name, values in found.items()}
    ratios, pairs, rule = match(A.unit, B.unit), assign(A.unit, B.unit), shared(A, B)
    assert means["ratio"] == pytest.approx((ratios.ratio_a_in_b, ratios.ratio_b_in_a))
    assert means["mmcs"] == pytest.approx((ratios.mmcs_a_to_b, ratios.mmcs_b_to_a))
    assert means["mutual"] == pytest.approx((20 / 40, 20 / 32))
    assert means["assigned"] == pytest.approx((pairs.share() * 32 / 40, pairs.share()))
    assert means["mcc"] == pytest.approx((pairs.mean, pairs.mean))
    assert means["shared"] == pytest.approx((rule.share * 32 / 40, rule.share))
    assert 0 < rule.share < pairs.share()
    plan = soft_match(A.unit, B.unit)
    assert means["soft"] == pytest.approx((plan.cosines_a.mean().item(), plan.cosines_b.mean().item()))


def test_a_null_stands_beside_each_direction():
    found = feature_values(A, B, measures=["ratio", "mmcs", "mcc"])
    turned_a, turned_b = UnitRows(rotated_rows(A.unit, 7)), UnitRows(rotated_rows(B.unit, 7))
    nulls = [feature_values(*pair, measures=list(found)) for pair in ((turned_a, B), (A, turned_b))]
    rows = {(row.measure, row.direction): row for row in measure_table(found, *nulls)}
    assert list(rows) == [
        *(("ratio", "a_in_b"), ("ratio", "b_in_a"), ("mmcs", "a_in_b"), ("mmcs", "b_in_a")),
        ("mcc", "a_in_b"),
    ]
    ratio, mmcs = rows["ratio", "b_in_a"], rows["mmcs", "b_in_a"]
    assert (ratio.found.value, ratio.null.value, ratio.found.n) == (20 / 32, 0, 32)
    assert mmcs.null.value == pytest.approx(nulls[0]["mmcs"].b.mean().item())
    assert rows["mmcs", "a_in_b"].null.value == pytest.approx(nulls[1]["mmcs"].a.mean().item())
    assert mmcs.difference.value == pytest.approx(mmcs.found.value - mmcs.null.value)
    assert mmcs.difference == estimate_difference(found["mmcs"].b, nulls[0]["mmcs"].b, paired=True, seed=1)
    assert 0 < mmcs.difference.low < mmcs.difference.value < mmcs.difference.high


def test_without_a_null_or_encoders_the_rest_is_measured():
    found = feature_values(UnitRows(A.unit), B)
    assert "shared" not in found
    row = measure_table(found)[0]
    assert math.isnan(row.null.value)
    assert math.isnan(row.difference.low)


def test_opposite_directions_are_alike_by_size():
    away = UnitRows(-A.unit)
    names = ["ratio", "mutual", "assigned"]
    assert all(v.a.mean() == 1 for v in feature_values(A, away, measures=names, absolute=True).values())
    assert all(v.a.mean() == 0 for v in feature_values(A, away, measures=names).values())


def test_an_unknown_measure_is_refused():
    with pytest.raises(SaeSweepError, match="no measure cosine, top; known: ratio, mmcs"):
        feature_values(A, B, measures=["top", "cosine", "ratio"])
