import math

import numpy as np
import pytest
import torch

from sae_sweep.analysis.spectrum import spectrum
from sae_sweep.config import SaeSweepError

T = 127


def noisy(
    *waves: tuple[float, float], noise: float = 0.1, slope: float = 0.02, seed: int = 0
) -> torch.Tensor:
    """A line, waves of k periods over all positions with an amplitude each, and noise."""
    x = torch.arange(T).double()
    curve = 3 + slope * x + noise * torch.randn(T, generator=torch.Generator().manual_seed(seed)).double()
    return curve + sum(size * torch.sin(2 * math.pi * k * x / T + 1) for k, size in waves)


def test_a_wave_is_found_with_its_period_and_amplitude():
    found = spectrum(noisy((5, 0.5), (20, 0.4)))
    assert found.periods[found.passes].tolist() == [T / 5, T / 20]
    assert found.periods[found.stands_out].tolist() == [T / 5, T / 20]
    assert found.amplitude[4].item() == pytest.approx(0.5, abs=0.03)
    assert found.amplitude[19].item() == pytest.approx(0.4, abs=0.03)
    assert found.periods[0] == T
    assert len(found.periods) == T // 2


def test_a_wave_between_two_periods_does_not_leak_into_others():
    """The Hann window's reason: a wave of 10.5 periods, which ends in mid-wave."""
    found = spectrum(noisy((10.5, 0.5), noise=0, slope=0))
    assert found.periods[found.passes].tolist() in ([T / 10], [T / 11])
    away = torch.cat([found.amplitude[1:6], found.amplitude[14:]])
    assert away.max() < 0.02 * found.amplitude.max()


@pytest.mark.parametrize("n", [8, 9])
def test_amplitudes_of_the_shortest_period_are_right_too(n):
    curve = torch.tensor([1.0, -1.0]).repeat(5)[:n]
    found = spectrum(curve)
    assert found.periods[-1] == pytest.approx(n / (n // 2))
    if n == 8:
        assert found.amplitude[-1].item() == pytest.approx(1, abs=0.05)


def test_the_null_is_exceeded_as_often_as_it_says():
    found = [spectrum(noisy(seed=seed), permutations=200, seed=seed) for seed in range(40)]
    above = np.mean([(one.amplitude > one.null_99).double().mean() for one in found])
    assert above < 0.03
    assert sum(bool(one.stands_out.any()) for one in found) <= 3
    again = spectrum(noisy(seed=1), permutations=200, seed=1)
    assert torch.equal(again.null_99, found[1].null_99)
    assert not torch.equal(spectrum(noisy(seed=1), permutations=200, seed=2).null_99, again.null_99)


def test_a_slope_does_not_change_the_spectrum_nor_its_null():
    flat, steep = spectrum(noisy((5, 0.5), slope=0)), spectrum(noisy((5, 0.5), slope=7))
    torch.testing.assert_close(flat.amplitude, steep.amplitude)
    torch.testing.assert_close(flat.null_99, steep.null_99)
    assert flat.null_99_largest == pytest.approx(steep.null_99_largest)


@pytest.mark.parametrize("curve", [torch.full((20,), 0.1), 0.1 + 0.3 * torch.arange(20).double()])
def test_a_straight_line_has_no_periods(curve):
    found = spectrum(curve)
    assert found.amplitude.abs().max() == 0
    assert not found.passes.any()
    assert not found.stands_out.any()


def test_positions_without_values_are_cut_off_at_both_ends():
    curve = noisy((5, 0.5))
    around = torch.cat([torch.full((3,), math.nan), curve, torch.full((1,), math.nan)])
    found = spectrum(around)
    assert found.first == 3
    assert torch.equal(found.amplitude, spectrum(curve).amplitude)


def test_too_few_values_and_gaps_are_refused():
    for curve in (torch.rand(7), torch.full((30,), math.nan), torch.empty(0)):
        with pytest.raises(SaeSweepError, match=r"positions have a value, and it needs 8"):
            spectrum(curve)
    for wrong in (math.nan, math.inf):
        curve = torch.cat([torch.tensor([math.nan]), torch.rand(20)])
        curve[9] = wrong
        with pytest.raises(SaeSweepError, match="position 9 of 1 to 20 has no finite value"):
            spectrum(curve)
    with pytest.raises(SaeSweepError, match="permutations=0 must be at least 1"):
        spectrum(torch.rand(20), permutations=0)
