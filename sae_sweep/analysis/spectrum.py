"""Periods in a curve over positions, and which of them a curve without order would not show."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.config import SaeSweepError

LEAST_POSITIONS = 8
"""Positions that a spectrum needs: 4 periods."""
PERMUTATIONS = 1000
_ROUNDING = 1e-12
"""Size of rounding errors beside the values of a curve; what is left of a straight line is set to 0."""


@dataclass(frozen=True)
class Spectrum:
    """Amplitude spectrum of a curve over T positions; entry k - 1 is the period T/k, the longest first."""

    periods: Float[Tensor, " periods"]
    """In positions: T, T/2, T/3, ..., down to 2."""
    amplitude: Float[Tensor, " periods"]
    """Amplitude of the sine wave of each period, in the unit of the curve. A curved trend is in the longest
    ones."""
    null_99: Float[Tensor, " periods"]
    """99th percentile of the amplitude of the same curve with its positions permuted."""
    null_99_largest: float
    """99th percentile, over permutations, of the largest amplitude of all periods: a curve without order has
    one above it in one of a hundred cases, whereas about one period in a hundred is above `null_99`."""
    peak: Bool[Tensor, " periods"]
    """True for periods whose amplitude is larger than that of both neighbours."""
    first: int
    """First position that counts; those before it have no value."""

    @property
    def passes(self) -> Bool[Tensor, " periods"]:
        """Peaks above the null of their own period."""
        return self.peak & (self.amplitude > self.null_99)

    @property
    def stands_out(self) -> Bool[Tensor, " periods"]:
        """Peaks above the null of the largest amplitude of all periods."""
        return self.peak & (self.amplitude > self.null_99_largest)


def spectrum(
    curve: Float[Tensor, " positions"], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Spectrum:
    """Find the periods of a curve: linear trend removed, Hann window, discrete Fourier transform.

    The null permutes the positions of the curve without its trend.

    Args:
        curve: a value per position, such as the mean activation; NaN before the first and after the last
            position with a value, as where only special tokens stand.
        permutations: number of permutations of the positions.
        seed: of the permutations.

    Raises:
        SaeSweepError: if fewer than `LEAST_POSITIONS` positions have values, or there are gaps between them.
    """
    if permutations < 1:
        raise SaeSweepError(f"spectrum: permutations={permutations} must be at least 1")
    values, first = _with_values(curve)
    rest = _detrended(values)
    generator = np.random.default_rng(seed)
    permuted = [generator.permutation(rest) for _ in range(permutations)]
    amplitude, *null = _amplitudes(np.stack([rest, *permuted]))
    sides = np.pad(amplitude, 1, constant_values=-np.inf)
    return Spectrum(
        periods=torch.from_numpy(len(values) / np.arange(1, len(amplitude) + 1)),
        amplitude=torch.from_numpy(amplitude),
        null_99=torch.from_numpy(np.quantile(null, 0.99, axis=0)),
        null_99_largest=float(np.quantile(np.max(null, axis=1), 0.99)),
        peak=torch.from_numpy((amplitude > sides[:-2]) & (amplitude > sides[2:])),
        first=first,
    )


def _with_values(curve: Tensor) -> tuple[np.ndarray, int]:
    """The part of the curve that has values, and its first position."""
    values = curve.detach().cpu().double().numpy()
    there = np.flatnonzero(~np.isnan(values))
    if len(there) < LEAST_POSITIONS:
        raise SaeSweepError(
            f"spectrum: {len(there)} positions have a value, and it needs {LEAST_POSITIONS}: "
            "give longer sequences or more text"
        )
    first, last = int(there[0]), int(there[-1])
    values = values[first : last + 1]
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise SaeSweepError(
            f"spectrum: position {first + wrong[0]} of {first} to {last} has no finite value: give more text"
        )
    return values, first


def _detrended(values: Float[np.ndarray, " positions"]) -> Float[np.ndarray, " positions"]:
    """Values minus the straight line of least squares through them; exactly 0 where that is all they are."""
    from scipy.signal import detrend

    rest = detrend(values)
    return np.where(np.abs(rest).max() > _ROUNDING * np.abs(values).max(), rest, 0)


def _amplitudes(curves: Float[np.ndarray, "n positions"]) -> Float[np.ndarray, "n periods"]:
    """Amplitudes of the periods T/1, T/2, ..., 2 of each curve, so that a sine wave of one has its own."""
    from scipy.signal import periodogram

    _, power = periodogram(curves, window="hann", detrend="linear", scaling="spectrum")
    amplitudes = np.sqrt(2 * power[:, 1:])
    if curves.shape[1] % 2 == 0:
        amplitudes[:, -1] /= np.sqrt(
            2
        )  # of the period 2, whose wave has the square of its amplitude as power
    return amplitudes
