import itertools
import math

import pytest

from sae_sweep.study.cells import figure13_cells, table1_cells
from sae_sweep.study.published import published
from sae_sweep.study.table2 import DOES_NOT_FOLLOW, FOLLOWS, TRUNCATED, recompute_table2, verdict
from sae_sweep.study.tables import study_tables
from tests.study.study_runs import BASELINE, pair_of

STUDY = published()


def test_table3_lists_74_saes_of_which_72_are_distinct_and_one_more_is_inferred():
    listed = list(itertools.chain.from_iterable(STUDY.table3))
    assert [len(row) for row in STUDY.table3] == [18, 18, 1, 1, 24, 3, 6, 3]
    assert len(listed) == 74
    assert len(set(listed)) == 72
    assert len(STUDY.saes) == 73


def test_every_sae_that_a_cell_needs_is_one_of_the_73():
    cells = [*table1_cells(), *figure13_cells(16), *figure13_cells(32)]
    needed = {facts for one in cells for facts in (one.counted, one.sought_in)}
    assert needed <= set(STUDY.saes)
    assert len({facts for one in table1_cells() for facts in (one.counted, one.sought_in)}) == 22


def test_a_dash_counts_the_second_and_in_counts_the_first():
    pair = pair_of("dataset/tinystories-pile")
    assert (pair.counted.dataset, pair.sought_in.dataset) == ("pile", "tinystories")
    sizes = pair_of("dictionary_large_in_small/12288in3072/owt")
    assert (sizes.counted.dictionary, sizes.sought_in.dictionary) == (16, 4)
    seeds = pair_of("seed_42_49/6144/tinystories")
    assert (seeds.counted.seed, seeds.sought_in.seed, seeds.counted.dictionary) == (49, 42, 8)
    assert seeds.counted.dataset == "tinystories"
    kinds = pair_of("architecture/jumprelu-batchtopk/owt")
    assert (kinds.counted.architecture, kinds.counted.sparsity) == ("batchtopk", 16)
    assert (kinds.sought_in.architecture, kinds.sought_in.sparsity) == ("jumprelu", 0.0018)
    sparsity = pair_of("sparsity/16-64/owt")
    assert (sparsity.counted.sparsity, sparsity.sought_in.sparsity) == (64, 16)


def test_a_cell_differs_in_what_its_block_says_and_in_nothing_else():
    for one in table1_cells():
        differing = {
            name
            for name in ("architecture", "dictionary", "sparsity", "dataset", "layer", "seed")
            if getattr(one.counted, name) != getattr(one.sought_in, name)
        }
        expected = {"seed_42_49": "seed"}.get(one.block, one.block.split("_")[0])
        assert differing - {"sparsity"} == {expected} - {"sparsity"}
        assert one.choice


def test_published_numbers_stand_in_their_cells():
    assert len(table1_cells()) == 5 + 5 * 6
    assert pair_of("dataset/tinystories-redpajama").published == 6.21
    assert pair_of("sparsity/16-64/tinystories").published == 33.06


def test_figure13_counts_the_later_layer():
    cells = figure13_cells(32)
    assert len(cells) == 66
    assert all(one.counted.layer > one.sought_in.layer for one in cells)
    assert {one.counted.sparsity for one in cells} == {32}
    assert {one.counted.dataset for one in cells} == {"tinystories"}


def test_table2_recomputed_from_table1():
    found = {key.removeprefix("table2/"): round(value, 1) for key, value in recompute_table2().items()}
    assert found == {
        "3072-12288/owt": 400.0,
        "6144-12288/owt": 365.6,
        "3072-6144/owt": 155.1,
        "3072-12288/tinystories": 335.5,
        "6144-12288/tinystories": 245.1,
        "3072-6144/tinystories": 212.9,
    }


def test_printed_numbers_that_do_not_follow_are_flagged():
    verdicts = {row.printed: row.verdict for row in study_tables([]).table2}
    assert verdicts == {
        400: FOLLOWS,
        366: FOLLOWS,
        156: DOES_NOT_FOLLOW,
        332: DOES_NOT_FOLLOW,
        251: DOES_NOT_FOLLOW,
        212: TRUNCATED,
    }


@pytest.mark.parametrize(("printed", "value", "expected"), [(3, 2.5001, FOLLOWS), (2, 2.6, TRUNCATED)])
def test_rounded_follows_and_cut_off_is_noted(printed, value, expected):
    assert verdict(printed, value) == expected


def test_footnotes_reach_their_cells():
    marks = {
        key: [note.mark for note in STUDY.footnotes_of(key)]
        for key in ("seed_42_49/3072/tinystories", "seed_42_49/3072/owt", "dataset/owt-tinystories")
    }
    assert marks == {
        "seed_42_49/3072/tinystories": ["a"],
        "seed_42_49/3072/owt": [],
        "dataset/owt-tinystories": ["c", "d"],
    }
    keys = [one.key for one in table1_cells()] + list(recompute_table2())
    assert all(any(note.concerns(key) for key in keys) for note in STUDY.footnotes)


def test_the_copied_seed_cell_is_no_count():
    share = STUDY.table1["seed_42_49"]["3072"][1]
    shares_of_3072 = {math.floor(1e4 * count / 3072) / 100 for count in range(3073)}
    shares_of_3072 |= {round(100 * count / 3072, 2) for count in range(3073)}
    assert share not in shares_of_3072
    assert share == round(100 * 4385 / 6144, 2)


def test_a_baseline_of_the_study_is_what_its_cells_depart_from():
    base = published().baseline
    assert (BASELINE.architecture, BASELINE.sparsity) == (base.architecture, base.k)
    assert (BASELINE.dictionary, BASELINE.layer, BASELINE.seed) == (base.dictionary, base.layer, base.seed)
