"""Cells and tables: which features are counted, which runs are chosen, and what is noted about them."""

import dataclasses
import math

import pytest
import torch

from sae_sweep.analysis import match
from sae_sweep.config import MatchingConfig, SaeSweepError
from sae_sweep.study.published import published
from sae_sweep.study.runs import StudyRun
from sae_sweep.study.shares import Shares
from sae_sweep.study.tables import study_tables
from tests.study.study_runs import BASELINE, all_runs, at, pair_of, study_run


def result_of(tables, key):
    (result,) = (result for result in tables.table1 if result.cell.key == key)
    return result


def test_a_dash_counts_features_of_the_second():
    cell = pair_of("dataset/owt-tinystories")
    owt = torch.tensor([at(0), at(90)])
    stories = torch.tensor([at(0), at(10), at(180), at(200), at(270)])
    runs = [study_run(cell.sought_in, owt), study_run(cell.counted, stories)]
    result = result_of(study_tables(runs), cell.key)
    assert (result.counted.name, result.sought_in.name) == (str(cell.counted), str(cell.sought_in))
    assert "tinystories" in result.counted.name
    # of TinyStories' five, those at 0 and 10 degrees have a match; of OpenWebText's two it would be one
    assert (result.measured.ratio, result.measured.n) == (pytest.approx(2 / 5), 5)
    assert result.difference == pytest.approx(40 - 15.45)
    assert result.measured.low <= 0.4 <= result.measured.high


def test_x_in_y_counts_features_of_x():
    large, small = torch.tensor([at(0), at(5), at(90), at(180)]), torch.tensor([at(0), at(270)])
    key = "dictionary_large_in_small/12288in3072/owt"
    cell = pair_of(key)
    runs = [study_run(cell.counted, large), study_run(cell.sought_in, small)]
    tables = study_tables(runs)
    there, back = result_of(tables, key), result_of(tables, "dictionary_small_in_large/3072in12288/owt")
    assert (there.measured.ratio, there.measured.n) == (0.5, 4)
    assert (back.measured.ratio, back.measured.n) == (0.5, 2)
    row = next(row for row in tables.table2 if (row.row, row.column) == ("3072-12288", "owt"))
    assert row.measured.features == 4 * 0.5 - 2 * 0.5
    assert (row.measured.large, row.measured.small, row.measured.live) == (4, 2, 1)
    assert row.difference == 1 - row.printed
    assert row.choice == there.cell.choice
    assert (row.large, row.small) == (runs[0], runs[1])
    assert row.measured.low <= row.measured.features <= row.measured.high


def test_the_threshold_is_strict():
    cell = pair_of("sparsity/16-32/owt")
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    cosine = match(one, other).top1_a.item()
    runs = [study_run(cell.counted, one), study_run(cell.sought_in, other)]
    for threshold, ratio in ((cosine, 0.0), (cosine - 1e-6, 1.0)):
        tables = study_tables(runs, Shares(MatchingConfig(threshold=threshold)))
        assert result_of(tables, cell.key).measured.ratio == ratio


def test_seven_tenths_exactly_is_no_match():
    # the cosine is the float32 nearest to 0.7, and so is what it is compared with
    cell = pair_of("sparsity/16-32/owt")
    tilted = torch.tensor([[0.7, math.sqrt(1 - 0.49)]])
    runs = [study_run(cell.counted, tilted), study_run(cell.sought_in, torch.tensor([[1.0, 0.0]]))]
    assert result_of(study_tables(runs), cell.key).measured.ratio == 0


def test_dead_features_of_both_are_left_out_of_the_live_ratio():
    cell = pair_of("sparsity/16-32/owt")
    counted = study_run(
        cell.counted,
        torch.tensor([at(0), at(90), at(180)]),
        densities=lambda: torch.tensor([0.1, 0.1, 0.0]),
    )
    sought_in = study_run(
        cell.sought_in, torch.tensor([at(0), at(90)]), densities=lambda: torch.tensor([0.1, 0.0])
    )
    measured = result_of(study_tables([counted, sought_in]), cell.key).measured
    assert (measured.ratio, measured.n) == (pytest.approx(2 / 3), 3)
    assert (measured.live_ratio, measured.n_live) == (0.5, 2)


def test_a_missing_run_is_named_and_the_rest_is_made():
    gone = BASELINE
    runs = [run for run in all_runs() if not run.fits(gone)]
    tables = study_tables(runs)
    result = result_of(tables, "seed_42_49/12288/owt")
    assert result.measured is None
    assert result.counted is None
    assert result.sought_in.seed == 42
    assert result.missing == (str(gone),)
    assert result.difference is None
    measured = [one for one in tables.table1 if one.measured is not None]
    assert len(measured) == sum(gone not in (one.cell.counted, one.cell.sought_in) for one in tables.table1)
    table2 = {(row.row, row.column): row for row in tables.table2}
    assert table2["3072-12288", "owt"].missing == (str(gone),)
    assert table2["3072-6144", "owt"].measured is not None


def test_no_runs_at_all_still_give_every_cell():
    tables = study_tables([])
    assert all(one.measured is None and len(one.missing) == 2 for one in tables.cells)
    assert tables.settings[0].name == "dataset"


def test_every_cell_equals_the_plain_match_and_each_pair_is_matched_once():
    pairs = []
    shares = Shares(progress=pairs.append)
    tables = study_tables(all_runs(), shares)
    for result in tables.cells:
        expected = match(result.sought_in.decoder(), result.counted.decoder()).ratio_b_in_a
        assert result.measured.ratio == pytest.approx(expected)
    distinct = {frozenset((one.counted, one.sought_in)) for one in tables.cells}
    assert pairs == list(range(1, len(distinct) + 1))
    assert len(frozenset[StudyRun]().union(*distinct)) == 22 + 24 - 2


def test_undertrained_runs_mark_their_cells():
    tables = study_tables(all_runs())
    assert not any(one.undertrained for one in tables.table1)
    assert {one.cell.sought_in.layer for one in tables.figure13[16] if one.undertrained} == {0, 1}


def test_mixed_runs_mark_their_cells():
    two_layers = [facts for facts in published().saes if facts.layer in (5, 8)]
    runs = [
        dataclasses.replace(run, mixed=run.fits(BASELINE) or run.layer == 5) for run in all_runs(two_layers)
    ]
    tables = study_tables(runs)
    for result in tables.cells:
        there = [run for run in (result.counted, result.sought_in) if run is not None]
        assert result.mixed == (len(there) == 2 and any(run.mixed for run in there))
    assert [sum(result.mixed for result in results) for results in tables.figure13.values()] == [1, 1]
    assert [row.mixed for row in tables.table2] == [
        BASELINE.dataset == row.column and BASELINE.dictionary in (row.large.dictionary, row.small.dictionary)
        for row in tables.table2
    ]
    counts = {setting.name: setting.mixed for setting in tables.settings}
    assert counts == {
        "dataset": 2,
        "seed": 1,
        "dictionary size": 4,
        "architecture": 2,
        "sparsity": 2,
    }


def test_of_several_fitting_runs_the_first_is_taken_and_said():
    runs = all_runs()
    twin = study_run(BASELINE, name="longer", tokens=1_000_000)
    tables = study_tables([*runs, twin])
    assert twin not in {run for one in tables.cells for run in (one.counted, one.sought_in)}
    (note,) = tables.notes
    assert "longer" in note
    assert str(BASELINE) in note


def test_a_cell_takes_two_runs_that_differ_in_nothing_else():
    cell = pair_of("seed_42_49/12288/owt")
    rate, slow = {"optimizer.lr": 0.0003}, {"optimizer.lr": 0.0001}
    short = study_run(cell.counted, name="short", tokens=50_000, rest=rate)
    seed49 = study_run(cell.counted, name="seed49", rest=rate)
    seed42 = study_run(cell.sought_in, name="seed42", rest=rate)
    slow42 = study_run(cell.sought_in, name="slow42", rest=slow)
    tables = study_tables([short, slow42, seed49, seed42])
    result = result_of(tables, cell.key)
    assert (result.counted, result.sought_in, result.differs) == (seed49, seed42, ())
    assert tables.notes == (
        f"several runs fit {cell.counted}: seed49 was chosen, not short",
        f"several runs fit {cell.sought_in}: seed42 was chosen, not slow42",
    )
    worse = result_of(study_tables([short, slow42]), cell.key)
    assert (worse.counted, worse.sought_in) == (short, slow42)
    assert worse.differs == ("tokens 50,000 / 100,000", "optimizer.lr 0.0003 / 0.0001")


def test_cells_that_take_different_runs_for_one_sae_say_so():
    seeds, sizes = pair_of("seed_42_49/12288/owt"), pair_of("dictionary_large_in_small/12288in3072/owt")
    runs = [
        *(study_run(seeds.counted, name=f"run {n}", rest={"data_seed": n}) for n in (1, 2, 3)),
        study_run(seeds.sought_in, rest={"data_seed": 2}),
        study_run(sizes.sought_in, rest={"data_seed": 1}),
    ]
    (note,) = study_tables(runs).notes
    assert note.endswith("run 1 and run 2 were chosen, each for some of its cells, not run 3")


def test_both_directions_of_two_sizes_take_the_same_runs():
    cell = pair_of("dictionary_large_in_small/12288in3072/owt")
    runs = [
        study_run(facts, name=f"{facts.dictionary} {seed}", rest={"data_seed": seed})
        for facts, seed in ((cell.counted, 1), (cell.counted, 2), (cell.sought_in, 2), (cell.sought_in, 1))
    ]
    tables = study_tables(runs)
    there = result_of(tables, cell.key)
    back = result_of(tables, "dictionary_small_in_large/3072in12288/owt")
    row = next(row for row in tables.table2 if (row.row, row.column) == ("3072-12288", "owt"))
    assert {there.counted, there.sought_in} == {back.counted, back.sought_in} == {row.large, row.small}
    assert there.differs == back.differs == row.differs == ()


def test_what_a_cell_varies_is_no_remark():
    kinds, texts = pair_of("architecture/topk-jumprelu/owt"), pair_of("dataset/owt-redpajama")
    runs = [
        study_run(kinds.counted, rest={"architecture.bandwidth": 2, "dataset.name": "owt"}),
        study_run(kinds.sought_in, rest={"dataset.name": "owt"}),
        study_run(texts.counted, rest={"dataset.name": "redpajama", "dataset.files": "*"}, tokens=200_000),
    ]
    tables = study_tables(runs)
    assert result_of(tables, kinds.key).differs == ()
    assert result_of(tables, texts.key).differs == ("tokens 200,000 / 100,000",)


def test_settings_are_ordered_by_their_lowest_ratio():
    tables = study_tables(all_runs())
    means = [setting.measured for setting in tables.settings]
    assert means == sorted(means)
    dataset = next(setting for setting in tables.settings if setting.name == "dataset")
    values = [100 * one.measured.ratio for one in tables.table1 if one.cell.block == "dataset"]
    assert dataset.measured == pytest.approx(sum(values) / 5)
    assert dataset.published == pytest.approx(17.236)
    assert len(next(one for one in tables.settings if one.name == "dictionary size").cells) == 12


def test_a_decoder_that_cannot_be_compared_is_named():
    cell = pair_of("sparsity/16-32/owt")
    runs = [study_run(cell.counted, torch.eye(3)), study_run(cell.sought_in, torch.eye(2))]
    with pytest.raises(SaeSweepError, match=r"d_in differs.*a is topk x16 k=16"):
        study_tables(runs)
