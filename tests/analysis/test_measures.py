import pytest
import torch

from sae_sweep.analysis.assignment import assign, shared, soft_match
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.matching import match
from sae_sweep.analysis.measures import MEASURES, UnitRows, feature_values
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


def test_without_encoders_the_rest_is_measured():
    assert "shared" not in feature_values(UnitRows(A.unit), B)


def test_opposite_directions_are_alike_by_size():
    away = UnitRows(-A.unit)
    names = ["ratio", "mutual", "assigned"]
    assert all(v.a.mean() == 1 for v in feature_values(A, away, measures=names, absolute=True).values())
    assert all(v.a.mean() == 0 for v in feature_values(A, away, measures=names).values())


def test_an_unknown_measure_is_refused():
    with pytest.raises(SaeSweepError, match="no measure cosine, top; known: ratio, mmcs"):
        feature_values(A, B, measures=["top", "cosine", "ratio"])
