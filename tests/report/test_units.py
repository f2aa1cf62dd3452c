"""Numbers with their units."""

import pytest

from sae_sweep.report.units import count, flop, gib, hours, span


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(0), "0"),
        (count(999), "999"),
        (count(100_000_000), "100M"),
        (count(999_936), "1,000k"),
        (count(7_300_000_000), "7.3B"),
        (flop(4.66e19), "46.6 EFLOP"),
        (flop(0), "0 MFLOP"),
        (gib(2**31), "2 GiB"),
        (gib(1145 * 2**30), "1,145 GiB"),
        (span(12.4), "12 s"),
        (span(180), "3 min"),
        (span(5400), "1.5 h"),
        (span(7200), "2 h"),
        (span(47 * 3600), "47 h"),
        (span(3 * 86400), "3 d"),
        (hours(9444.46), "9,444.5 hours"),
        (hours(0.15), "9 min"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected
