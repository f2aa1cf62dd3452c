import itertools
import math

import numpy as np
import pytest

from sae_sweep.analysis.dose import Dosed, DosePoint, dose_curves

SEEDS, SHARES = (42, 49, 7), (0.0, 0.25, 1.0)


@pytest.fixture
def runs() -> list[Dosed]:
    return [
        Dosed(f"{share}-{seed}", seed, share, undertrained=share == 0.25)
        for share in SHARES
        for seed in SEEDS
    ]


@pytest.fixture
def matched(runs: list[Dosed]) -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    return {(a.name, b.name): rng.random(60) < 0.4 for a, b in itertools.permutations(runs, 2)}


def _find(points: list[DosePoint], features: str, text: int, share: float) -> DosePoint:
    (point,) = [one for one in points if (one.features, one.text, one.share) == (features, text, share)]
    return point


@pytest.mark.parametrize("features", ["all", "own"])
@pytest.mark.parametrize("text", [0, 1])
@pytest.mark.parametrize("dose", SHARES)
def test_each_point_is_a_naive_count(
    runs: list[Dosed], matched: dict[tuple[str, str], np.ndarray], features: str, text: int, dose: float
) -> None:
    found = sought = 0
    ratios = []
    for a, b in itertools.permutations(runs, 2):
        if a.share != text or b.share != dose or a.seed == b.seed:
            continue
        here = there = 0
        for feature in range(60):
            others = [c for c in runs if c not in (a, b)]
            own = any(matched[a.name, c.name][feature] for c in others if c.share == text)
            other = any(matched[a.name, c.name][feature] for c in others if c.share == 1 - text)
            if features == "all" or (own and not other):
                there += 1
                here += matched[a.name, b.name][feature]
        found, sought = found + here, sought + there
        ratios.append(here / there)
    point = _find(dose_curves(runs, matched), features, text, dose if text else 1 - dose)
    assert point.n == sought
    assert point.ratio == pytest.approx(found / sought)
    assert (point.lowest, point.highest) == pytest.approx((min(ratios), max(ratios)))
    assert point.pairs == len(ratios) == 6
    assert point.undertrained == (6 if dose == 0.25 else 0)
    assert point.low < point.ratio < point.high


def test_the_interval_covers_the_true_share_as_often_as_it_says(runs: list[Dosed]) -> None:
    """Features that are found with probability 0.3 in a mixture, independently."""
    some = [run for run in runs if run.seed != 7]
    inside = 0
    for trial in range(20):
        rng = np.random.default_rng(trial)
        matched = {(a.name, b.name): rng.random(80) < 0.3 for a, b in itertools.permutations(some, 2)}
        point = _find(dose_curves(some, matched), "all", 0, 0.75)
        inside += point.low <= 0.3 <= point.high
    assert inside >= 16


def test_runs_of_one_seed_show_nothing(runs: list[Dosed], matched: dict[tuple[str, str], np.ndarray]) -> None:
    assert dose_curves([run for run in runs if run.seed == 42], matched) == []


def test_own_features_need_a_third_seed_at_the_ends(
    runs: list[Dosed], matched: dict[tuple[str, str], np.ndarray]
) -> None:
    """With two, the SAE in which they are sought would be the one that says which they are."""
    points = dose_curves([run for run in runs if run.seed != 7], matched)
    pure, mixed = (_find(points, "own", 0, share) for share in (1.0, 0.75))
    assert math.isnan(pure.ratio)
    assert math.isnan(pure.low)
    assert pure.n == 0
    assert mixed.n > 0
    assert mixed.low <= mixed.ratio <= mixed.high


def test_own_features_need_an_sae_of_the_other_text_that_has_a_say(
    runs: list[Dosed], matched: dict[tuple[str, str], np.ndarray]
) -> None:
    """With one, none is left to say which are own where they are sought in it."""
    some = [run for run in runs if run.share != 1 or run.seed == 42]
    points = dose_curves(some, matched)
    assert [_find(points, "own", 0, share).n > 0 for share in (0.0, 0.75, 1.0)] == [False, True, True]


def test_pairs_with_an_undertrained_sae_are_left_out_where_there_are_others(
    runs: list[Dosed], matched: dict[tuple[str, str], np.ndarray]
) -> None:
    lost = [one._replace(undertrained=one.name == "1.0-42") for one in runs]
    point = _find(dose_curves(lost, matched), "all", 1, 1.0)
    trained = [matched[a, b] for a, b in itertools.permutations(("1.0-49", "1.0-7"), 2)]
    assert point.ratio == pytest.approx(np.mean(trained))
    assert (point.pairs, point.undertrained, point.trained, point.n) == (6, 4, True, 120)
    all_lost = [one._replace(undertrained=True) for one in runs]
    assert not _find(dose_curves(all_lost, matched), "all", 1, 1.0).trained
