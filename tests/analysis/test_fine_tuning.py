"""What fine-tuning changes: settings, what they are compared with, and intervals by hand."""

import math

import pytest

from sae_sweep.analysis.fine_tuning import GENERAL, Effect, Setting, Tuned, effects, mean_interval

PLAIN, TILTED, SCRATCH = Setting("g", None), Setting("g", 10.0), Setting("", None)
START = {"start_explained_variance": 0.5, "start_alive": 90.0}


def tuned(setting: Setting, order: int, value: float, **more: float) -> Tuned:
    start = START if setting.start else {}
    metrics = {"explained_variance": value, "alive": 100.0, **start, **more}
    return Tuned(f"{setting} {order}", setting, (order, 42), metrics)


RUNS = [
    *(tuned(PLAIN, order, value, new_features=0.25) for order, value in enumerate((0.8, 0.9, 0.7))),
    *(tuned(TILTED, order, value) for order, value in ((0, 0.81), (1, 0.92), (7, 0.1))),
    tuned(SCRATCH, 0, 0.6),
]


def found(one: Setting, other: Setting | None, metric: str = "explained_variance") -> Effect | None:
    chosen = [e for e in effects(RUNS) if (e.setting, e.against, e.metric) == (one, other, metric)]
    return chosen[0] if chosen else None


def test_an_interval_over_three_orders_by_hand() -> None:
    # t(2, 0.975) = 4.302653, standard deviation 0.1
    assert mean_interval([0.7, 0.8, 0.9]) == pytest.approx((0.8, *(0.8 + s * 0.248414 for s in (-1, 1))))
    mean, low, high = mean_interval([0.7])
    assert (mean, math.isnan(low), math.isnan(high)) == (0.7, True, True)


def test_settings_stand_beside_the_sae_that_they_started_from() -> None:
    general, plain = found(Setting("g", GENERAL), None), found(PLAIN, None)
    assert general is not None
    assert plain is not None
    assert (general.value, general.runs, math.isnan(general.low)) == (0.5, 1, True)
    assert (plain.value, plain.runs) == (pytest.approx(0.8), 3)
    assert found(Setting("g", GENERAL), None, "new_features") is None
    assert found(SCRATCH, Setting("", GENERAL)) is None


def test_differences_are_of_equal_orders() -> None:
    gained = found(PLAIN, Setting("g", GENERAL))
    assert gained is not None
    assert (gained.value, gained.runs) == (pytest.approx(0.3), 3)
    tilt = found(TILTED, PLAIN)
    assert tilt is not None
    assert (tilt.value, tilt.runs) == (pytest.approx(0.015), 2)  # no plain one has order 7
    scratch = found(PLAIN, SCRATCH)
    assert scratch is not None
    assert (scratch.value, scratch.runs, math.isnan(scratch.low)) == (pytest.approx(0.2), 1, True)
    assert found(TILTED, Setting("", 10.0)) is None
