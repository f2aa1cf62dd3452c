"""Does the dataset matter more than the seed? All answers, on runs whose shared features are known."""

import dataclasses

import pytest
import torch

from sae_sweep.study.answers import (
    DATASET_MORE,
    OWN_STARTS,
    SEED_MORE,
    UNDECIDED,
    UNDERTRAINED,
    answer_controlled,
    dataset_or_seed,
    pairs_differing_in,
    published_answer,
)
from sae_sweep.study.shares import Shares
from tests.study.study_runs import BASELINE, all_runs, rows, study_run


def grid(share_by_seed, share_by_dataset, **changes):
    """Two datasets x two seeds; some rows are shared by equal seeds, some by equal datasets, some by none."""
    runs = []
    for dataset in ("owt", "tinystories"):
        for seed in (42, 49):
            facts = dataclasses.replace(BASELINE, dataset=dataset, seed=seed)
            alone = 100 - share_by_seed - share_by_dataset
            parts = [
                rows(share_by_seed, f"seed {seed}", 96),
                rows(share_by_dataset, dataset, 96),
                rows(alone, str(facts), 96),
            ]
            runs.append(study_run(facts, torch.cat(parts), **changes))
    return runs


def level(share, datasets, seeds, **changes):
    """Runs of one setting; every two of them share the same part of their features."""
    runs = []
    for dataset in datasets:
        for seed in seeds:
            facts = dataclasses.replace(BASELINE, dataset=dataset, seed=seed)
            common = rows(share, f"of all {changes}", 96)
            alone = rows(100 - share, f"{facts} {changes}", 96)
            name = f"{facts} {changes}"
            runs.append(study_run(facts, torch.cat([common, alone]), **{"name": name, **changes}))
    return runs


def test_pairs_that_differ_in_one_thing_only():
    runs = grid(10, 10)
    odd = dataclasses.replace(runs[0], name="longer", tokens=7, dataset="pile")
    assert [(a.seed, b.seed) for a, b in pairs_differing_in("dataset", [*runs, odd])] == [(42, 42), (49, 49)]
    assert [(a.dataset, b.dataset) for a, b in pairs_differing_in("seed", runs)] == [
        ("owt", "owt"),
        ("tinystories", "tinystories"),
    ]
    other_rate = dataclasses.replace(runs[1], rest={"optimizer.lr": 1})
    assert not pairs_differing_in("seed", [runs[0], other_rate])


def test_a_level_that_comes_with_the_setting_is_no_answer():
    # sizes with few and many pairs of each kind: pooled, the dataset would seem to move 11 points more
    runs = [
        *level(50, ("owt", "pile"), (1, 2), dictionary=4),
        *level(65, ("owt", "pile", "redpajama", "tinystories"), (1, 2), dictionary=8),
        *level(85, ("owt", "pile"), range(6), dictionary=16),
    ]
    assert len(runs) == 24
    answer = answer_controlled(runs, Shares(), "here")
    assert (answer.dataset.pairs, answer.seed.pairs) == (2 + 12 + 6, 2 + 4 + 30)
    assert answer.dataset.ratio == pytest.approx((0.5 + 0.65 + 0.85) / 3)
    assert answer.difference == pytest.approx(0, abs=1e-9)
    assert answer.low < 0 < answer.high
    assert answer.larger == UNDECIDED
    assert answer.settings == tuple(f"topk x{size} k=16, layer 8, 100,000 tokens" for size in (4, 8, 16))


def test_settings_with_one_kind_of_pair_only_are_left_out():
    both = level(50, ("owt", "pile"), (1, 2))
    only_datasets = level(20, ("owt", "pile", "redpajama"), (1,), k=64)
    only_seeds = level(90, ("owt",), (1, 2, 3), rest={"optimizer.lr": 1})
    answer = answer_controlled([*both, *only_datasets, *only_seeds], Shares(), "here")
    assert (answer.dataset.ratio, answer.seed.ratio) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (len(answer.settings), answer.settings_left_out) == (1, 2)
    apart = answer_controlled([*only_datasets, *only_seeds], Shares(), "here")
    assert (apart.dataset.ratio, apart.seed.ratio, apart.difference) == (None, None, None)
    assert apart.dataset.missing == apart.seed.missing == ("a setting with both kinds of pair",)
    assert apart.larger == UNDECIDED


def test_settings_are_told_apart_by_what_differs():
    runs = [
        run
        for rate in (1, 2)
        for run in level(50, ("owt", "pile"), (1, 2), rest={"architecture.auxk": rate, "batch": 8})
    ]
    answer = answer_controlled(runs, Shares(), "here")
    more = [name.split("tokens")[1] for name in answer.settings]
    assert more == [", architecture.auxk=1", ", architecture.auxk=2"]


@pytest.mark.parametrize(
    ("by_seed", "by_dataset", "words"),
    [(10, 60, DATASET_MORE), (60, 10, SEED_MORE), (30, 30, UNDECIDED)],
)
def test_the_controlled_answer_has_both_directions_and_an_interval(by_seed, by_dataset, words):
    answer = answer_controlled(grid(by_seed, by_dataset), Shares(), "here")
    assert answer.dataset.ratio == pytest.approx(by_seed / 100)
    assert answer.seed.ratio == pytest.approx(by_dataset / 100)
    assert (answer.dataset.pairs, answer.seed.pairs) == (2, 2)
    assert answer.low <= answer.difference <= answer.high
    assert answer.larger == words


def test_all_ways_of_comparing():
    own = grid(10, 60, init_shared=False, init_match=0.2)
    answers = dataset_or_seed(own, Shares(), sweep="controlled", paper=all_runs(), paper_sweep="paper")
    assert [(answer.way, answer.where) for answer in answers] == [
        ("published", "the study"),
        ("as in the study", "paper, shared starts"),
        ("as in the study", "controlled, own starts"),
        ("controlled", "controlled, own starts"),
        ("controlled", "controlled, shared starts"),
    ]
    first, paper, here, controlled, shared = answers
    assert (first.dataset.ratio, first.seed.ratio) == (pytest.approx(0.17236), pytest.approx(0.5525))
    assert first.larger == DATASET_MORE
    assert (paper.dataset.pairs, paper.seed.pairs) == (5, 2)
    assert here.dataset.pairs == 1
    assert len(here.dataset.missing) == 4
    assert controlled.undertrained
    assert controlled.larger == UNDERTRAINED
    assert OWN_STARTS in controlled.where
    assert shared.larger == UNDECIDED
    assert shared.dataset.missing == ("two runs that differ only in the dataset",)


def test_a_controlled_answer_leaves_undertrained_runs_out_where_others_remain():
    runs = grid(10, 60)
    long = [dataclasses.replace(run, name=f"{run.name} long", tokens=7) for run in grid(60, 10)]
    short = [dataclasses.replace(run, init_match=0.5) for run in runs]
    answer = answer_controlled([*short, *long], Shares(), "here")
    assert (answer.larger, answer.undertrained, len(answer.settings)) == (SEED_MORE, 0, 1)
    answer = answer_controlled([short[0], *runs[1:]], Shares(), "here")
    assert (answer.dataset.pairs, answer.seed.pairs, answer.undertrained) == (1, 1, 0)
    assert answer.larger == DATASET_MORE
    answer = answer_controlled([*short[:2], *runs[2:]], Shares(), "here")
    assert (answer.dataset.pairs, answer.seed.pairs) == (2, 2)
    assert answer.larger == UNDERTRAINED


def test_pairs_with_a_mixed_run_are_counted_in_every_answer():
    runs = grid(10, 60)
    runs = [dataclasses.replace(runs[0], mixed=True), *runs[1:]]
    _, here, controlled, shared = dataset_or_seed(runs, Shares(), paper=())
    assert (here.dataset.mixed, here.seed.mixed, here.mixed) == (0, 1, 1)
    assert (shared.dataset.mixed, shared.seed.mixed, shared.mixed) == (1, 1, 2)
    assert (shared.dataset.pairs, shared.seed.pairs) == (2, 2)
    assert not controlled.mixed
    assert not published_answer().mixed


def test_a_run_without_live_features_leaves_the_controlled_rows():
    runs = grid(10, 60)
    dead = dataclasses.replace(runs[0], densities=lambda: torch.zeros(100))
    answer = answer_controlled([dead, *runs[1:]], Shares(), "here")
    assert (answer.dataset.pairs, answer.seed.pairs) == (1, 1)
    assert dead.name in answer.dataset.missing[0]
