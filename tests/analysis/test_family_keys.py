import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.families import find_families
from sae_sweep.analysis.family_keys import (
    accumulation,
    by_number_of_runs,
    key_table,
    kinds,
    shuffled_presence,
)

DIRECTIONS = torch.eye(40)
GRID = [
    {"dataset": dataset, "seed": seed, "size": size}
    for dataset, seed, size in itertools.product(["code", "text"], [1, 2, 3], [4, 8])
]


def planted(keys=GRID):
    """Every run holds directions 0 to 9, its dataset 5 of its own, its seed 2, and itself one more."""
    entries = []
    for i, own in enumerate(keys):
        held = list(range(10))
        held += range(10, 15) if own["dataset"] == "code" else range(15, 20)
        held += [18 + 2 * own["seed"], 19 + 2 * own["seed"]]
        rows = torch.cat([DIRECTIONS[held], DIRECTIONS[28 + i : 29 + i]])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(i))
        entries.append(ComparisonEntry(f"run{i}", own, rows[order], 0.0))
    return find_families(entries)


def rows_by_kind(found, **options):
    return {(row.key, row.kind, row.value): row for row in key_table(found, resamples=50, **options)}


def test_planted_families_are_told_apart():
    rows = rows_by_kind(planted(), shuffles=20)
    counts = {kind: row.families for kind, row in rows.items()}
    assert counts == {
        ("", "universal", ""): 10,
        ("dataset", "common", ""): 10,  # the seeds' own are in a third of the runs of both
        ("dataset", "only", ""): 10,
        ("dataset", "only", "code"): 5,
        ("dataset", "only", "text"): 5,
        ("seed", "common", ""): 20,
        ("seed", "only", ""): 6,
        ("seed", "only", "1"): 2,
        ("seed", "only", "2"): 2,
        ("seed", "only", "3"): 2,
        ("size", "common", ""): 20,
        ("size", "only", ""): 0,
        ("size", "only", "4"): 0,
        ("size", "only", "8"): 0,
    }
    universal, only = rows["", "universal", ""], rows["dataset", "only", ""]
    assert (universal.runs, universal.mean_size, universal.share) == (12, 12, 10 / 26)
    assert (only.mean_size, only.mean_cosine, only.runs) == (6, pytest.approx(1), 12)
    assert rows["dataset", "only", "code"].runs == 6
    assert math.isnan(rows["size", "only", ""].mean_size)
    assert universal.low < universal.share < universal.high
    # the margins decide which families are universal; which runs the others are in is left to chance
    assert universal.null == universal.null_low == universal.null_high == pytest.approx(universal.share)
    assert only.null_high < only.share
    assert rows["seed", "only", ""].null_high < 6 / 26


def test_intervals_over_seeds_need_three_of_them_and_leave_the_seed_out():
    rows = rows_by_kind(planted(), shuffles=1)
    universal = rows["", "universal", ""]
    # each seed left out: its two own families go, and of 24 families 10 are universal
    assert (universal.seed_low, universal.seed_high) == pytest.approx((10 / 26, 10 / 26), abs=1e-6)
    assert universal.seed_low - 1e-6 <= universal.share <= universal.seed_high
    assert math.isnan(rows["seed", "only", ""].seed_low)
    two = rows_by_kind(planted([own for own in GRID if own["seed"] != 3]), shuffles=1)
    assert all(math.isnan(row.seed_low) for row in two.values())
    assert two["dataset", "only", ""].families == 10


def naive_kinds(presence, keys):
    """The definitions of common and only, family by family."""
    found = {}
    for key in {key for own in keys for key in own}:
        values = {own[key] for own in keys if key in own}
        for family, row in enumerate(presence.tolist()):
            share = {
                value: [row[run] for run, own in enumerate(keys) if own.get(key) == value] for value in values
            }
            half = {value for value, there in share.items() if sum(there) >= len(there) / 2}
            some = {value for value, there in share.items() if any(there)}
            two = sum(there for one in share.values() for there in one) >= 2
            found[family, key] = (
                two and half == values,
                {value for value in half if two and some == {value}},
            )
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 12), st.integers(2, 9), st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_kinds_equal_the_definition(n, runs, seed, density):
    generator = torch.Generator().manual_seed(seed)
    presence = torch.rand(n, runs, generator=generator) < density
    draws = torch.randint(3, (2, runs), generator=generator).tolist()
    keys = [{"k": draws[0][run], **({"l1": draws[1][run]} if draws[0][run] else {})} for run in range(runs)]
    expected = naive_kinds(presence, keys)
    for kind in kinds(presence, keys):
        for family in range(n):
            if kind.kind == "universal":
                wanted = presence[family].sum().item() >= max(2, 0.9 * runs)
            elif kind.kind == "common":
                wanted = expected[family, kind.key][0]
            else:
                only = {str(value) for value in expected[family, kind.key][1]}
                wanted = kind.value in only if kind.value else bool(only)
            assert kind.families[family].item() == wanted


def test_a_key_of_one_value_says_nothing():
    keys = [{"seed": 1, "k": 16}, {"seed": 2, "k": 16}]
    assert {kind.key for kind in kinds(torch.ones(1, 2, dtype=torch.bool), keys)} == {"", "seed"}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 15), st.integers(1, 7), st.integers(0, 10_000))
def test_shuffles_keep_both_margins(n, runs, seed):
    presence = torch.rand(n, runs, generator=torch.Generator().manual_seed(seed)) < 0.5
    before = presence.clone()
    for shuffled in itertools.islice(shuffled_presence(presence, seed), 3):
        assert torch.equal(shuffled.sum(0), presence.sum(0))
        assert torch.equal(shuffled.sum(1), presence.sum(1))
    assert torch.equal(presence, before)


def test_shuffles_reach_all_tables_equally_often():
    """Margins (1, 1, 1) and (1, 1, 1) leave the six permutation matrices."""
    tables = itertools.islice(shuffled_presence(torch.eye(3, dtype=torch.bool)), 1200)
    counts = {}
    for table in tables:
        name = tuple(table.int().argmax(1).tolist())
        counts[name] = counts.get(name, 0) + 1
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())
    halves = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    drawn = [tuple(table[:, 0].tolist()) for table in itertools.islice(shuffled_presence(halves), 600)]
    assert all(60 < drawn.count(table) < 140 for table in set(drawn))
    assert len(set(drawn)) == 6


def test_the_table_is_the_same_for_the_same_seed():
    found = planted()
    assert rows_by_kind(found, shuffles=5).keys() == rows_by_kind(found, shuffles=5).keys()
    one, two = (rows_by_kind(found, shuffles=5, seed=1)["dataset", "only", ""] for _ in range(2))
    assert one == two
    assert one != rows_by_kind(found, shuffles=5, seed=2)["dataset", "only", ""]


def test_no_families_give_no_shares():
    found = find_families(
        [ComparisonEntry(name, {"k": name}, DIRECTIONS[i : i + 1], 0.0) for i, name in enumerate("ab")]
    )
    for row in key_table(found, shuffles=2, resamples=5):
        assert row.families == 0
        assert all(math.isnan(value) for value in (row.share, row.low, row.seed_low, row.null, row.null_high))


def test_accumulation_is_the_mean_over_all_choices_of_runs():
    found = planted([own for own in GRID if own["size"] == 4])
    held = [
        {("family", family) for family in found.presence[:, run].nonzero()[:, 0].tolist()}
        | {("orphan", run, i) for i in range(found.orphans[run])}
        for run in range(len(found.runs))
    ]
    for n, value in enumerate(accumulation(found).tolist(), start=1):
        sizes = [len(set.union(*chosen)) for chosen in itertools.combinations(held, n)]
        assert value == pytest.approx(sum(sizes) / len(sizes))
    counts = by_number_of_runs(found)
    # universal in 6 runs, of a dataset in 3, of a seed in 2, and one feature of each run alone
    assert counts.tolist() == [0, 6, 6, 10, 0, 0, 10]
