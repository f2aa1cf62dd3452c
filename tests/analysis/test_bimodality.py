import math
import sys

import pytest
import torch

from sae_sweep.analysis.bimodality import bimodality
from sae_sweep.config import SaeSweepError


def logs(*parts: tuple[int, float, float]) -> torch.Tensor:
    """Values whose logarithms are normal: number, mean and standard deviation of each part."""
    generator = torch.Generator().manual_seed(0)
    return 10 ** torch.cat(
        [mean + std * torch.randn(n, generator=generator).double() for n, mean, std in parts]
    )


def test_two_sets_are_told_from_one():
    two, one = bimodality(logs((2000, -1, 0.2), (1000, 0.5, 0.3))), bimodality(logs((3000, 0, 0.5)))
    assert two.p < 0.001
    assert one.p > 0.1
    assert two.dip > 5 * one.dip
    assert two.ashman_d == pytest.approx(math.sqrt(2) * 1.5 / math.hypot(0.2, 0.3), rel=0.03)
    assert one.ashman_d < 2


def test_the_dip_of_two_points_masses_is_a_quarter():
    """Half of the values at each of two places: the furthest from a single mode that there is."""
    found = bimodality(torch.cat([torch.full((500,), 0.1), torch.full((500,), 10.0)]))
    assert found.dip == pytest.approx(0.25, abs=0.001)
    assert found.ashman_d == pytest.approx(math.sqrt(2) * 2 / math.hypot(0.01, 0.01), rel=0.01)


def test_the_unit_of_the_values_does_not_matter():
    values = logs((200, -1, 0.2), (300, 0.5, 0.3))
    ours, theirs = bimodality(values), bimodality(1000 * values)
    assert theirs.dip == pytest.approx(ours.dip)
    assert theirs.ashman_d == pytest.approx(ours.ashman_d)


def test_dead_features_are_left_out_and_counted():
    values = logs((300, 0, 0.5))
    found = bimodality(torch.cat([torch.tensor([math.nan, 0.0, math.nan]), values]))
    assert (found.n, found.dead) == (300, 3)
    assert found.dip == bimodality(values).dip


def test_more_values_than_the_table_of_the_test_has():
    found = bimodality(torch.rand(80_000, generator=torch.Generator().manual_seed(0)) + 1)
    assert found.p > 0.05


def test_too_few_or_equal_values_give_no_number():
    for n in range(4):
        found = bimodality(torch.rand(n) + 1)
        assert (found.n, found.dead) == (n, 0)
        assert all(math.isnan(number) for number in (found.dip, found.p, found.ashman_d))
    equal = bimodality(torch.full((50,), 0.3))
    assert equal.p == 1
    assert math.isnan(equal.ashman_d)
    assert math.isfinite(bimodality(torch.tensor([1.0, 1.0, 1.0, 2.0])).ashman_d)


@pytest.mark.parametrize("wrong", [-0.1, math.inf])
def test_values_that_are_no_sizes_are_refused(wrong):
    with pytest.raises(SaeSweepError, match="negative or infinite"):
        bimodality(torch.tensor([1.0, 2.0, 3.0, 4.0, wrong]))


@pytest.mark.parametrize("package", ["diptest", "sklearn.mixture"])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SaeSweepError, match=r"not installed.*pip install 'sae-sweep\[figures\]'"):
        bimodality(torch.rand(20) + 1)
