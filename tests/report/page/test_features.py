"""The list of features: of runs whose statistics are there, in whole or as a sample."""

from pathlib import Path

import numpy as np
import pyarrow

from sae_sweep.analysis.pairs import Nearest
from sae_sweep.report.answer import Answer
from sae_sweep.report.page.analysed import Statistics
from sae_sweep.report.page.contexts import chosen
from sae_sweep.report.page.families import Family, members, section
from sae_sweep.report.page.features import listed, listing
from sae_sweep.report.page.matching import Compared
from sae_sweep.report.page.runs import Runs
from sae_sweep.store import SweepFolder
from tests.report.page.reading import unpacked

NAMES = ["a", "b", "c"]


def runs() -> Runs:
    return Runs(NAMES, NAMES, NAMES, ["done"] * 3, [None] * 3, {}, SweepFolder(Path("nowhere")))


def statistics() -> Statistics:
    """Three features of a, none known of b, whose file is damaged, and two of c."""
    density, largest = np.array([0.5, 0, 0.1, 1e-6, 0.01]), np.array([3.0, 0, 5e4, 1, 2])
    return Statistics(np.array([0, 3, 3, 5]), density, largest)


def families(tmp_path: Path) -> Family:
    tables = {
        "families": {"kinds": [["universal", "only seed 1"], []]},
        "members": {"family": [0, 0, 1, 1], "run": ["a", "b", "c", "a"], "feature": [2, 1, 0, 0]},
        "stability": {"run": ["a"] * 3, "feature": [0, 1, 2], "share": [0.0, None, 1.0]},
        "orphans": {"run": ["c"]},
    }
    return Family("", tmp_path, {name: pyarrow.table(columns) for name, columns in tables.items()})


def compared() -> Compared:
    """a and c, and b, whose statistics are damaged."""

    def nearest(features: list[int], cosines: list[float]) -> Nearest:
        return Nearest(np.array(features, np.int32), np.array(cosines, np.float32))

    of_a = {"b": nearest([3, 2, 1], [0.9, 0.1, -0.2]), "c": nearest([1, 0, 1], [0.8, 0.71, 0.3])}
    of_c = {"a": nearest([2, 0], [0.71, 0.7]), "b": nearest([0, 1], [0.2, 0.3])}
    answer = Answer(("a", "b", "c"), 0.7, 0.1, (0, 0, 0), (), ())
    return Compared(answer, [0, 1, 2], [of_a, {}, of_c], {})


def test_features_of_a_run_whose_statistics_are_damaged_move_no_others(tmp_path: Path) -> None:
    found = members(runs(), [families(tmp_path)])
    known = statistics()
    numbers = listed(known, {}, 100)
    header, block = unpacked(listing(runs(), known, numbers, {}, compared(), found))
    assert block["starts"].tolist() == [0, 3, 3, 5]
    assert block["numbers"].tolist() == [0, 1, 2, 0, 1]
    assert block["family"].tolist() == [1, -1, 0, 1, -1]  # not that of b's feature 1
    assert block["stable"].tolist() == [0, 255, 254, 255, 255]
    assert block["match"].tolist() == [254, 127, 0, 127, 0]  # of two others each; 0.7 is not above 0.7
    assert block["nearest_run"].tolist() == [1, 2, 2, 0, 0]
    assert block["nearest_feature"].tolist() == [3, 0, 1, 2, 0]
    assert (block["cosine"] / 254).round(2).tolist() == [0.9, 0.71, 0.3, 0.71, 0.7]
    assert header["most"] == 5e4
    largest = np.where(
        block["largest"] == header["never"], 0, 10.0 ** -(block["largest"] / header["log_steps"])
    )
    np.testing.assert_allclose(header["most"] * largest, known.largest, rtol=2e-4)
    words = header["kind_words"]
    assert [words[kind] for kind in block["kinds"]] == ["universal", "only seed 1"]
    assert block["kind_counts"].tolist() == [2, 0]
    assert found.followed == {0, 1, 2}


def test_a_long_list_is_a_sample_that_holds_all_details() -> None:
    density = np.concatenate([np.linspace(0.001, 1, 900), np.zeros(100), np.full(500, 0.1)])
    known = Statistics(np.array([0, 1000, 1500]), density, np.ones(1500))
    inside = {0: np.array([3, 5]), 1: np.array([499])}
    first, second = listed(known, inside, 150)
    assert {3, 5} <= set(first.tolist())
    assert 499 in second
    assert 130 <= len(first) + len(second) <= 150
    assert (np.diff(first) > 0).all()
    assert first.max() < 900  # dead ones only where all are listed
    spread = np.diff(np.sort(density[first]))
    assert spread.max() < 3 * spread.mean()
    assert [len(each) for each in listed(known, inside, 1500)] == [1000, 500]


def test_details_inside_are_whole_families_and_an_even_rest(tmp_path: Path) -> None:
    found = members(runs(), [families(tmp_path)])
    density = np.linspace(1, 0.001, 60)
    known = Statistics(np.array([0, 20, 40, 60]), density, np.ones(60))
    analysed = dict.fromkeys((0, 1, 2))
    picked = chosen(known, analysed, found, 12)  # type: ignore[arg-type]
    assert {2, 0} <= set(picked[0].tolist())
    assert 1 in picked[1]
    assert 0 in picked[2]
    assert 7 <= sum(map(len, picked.values())) <= 12
    assert {19} <= set(picked[1].tolist())  # the rarest stands beside the most frequent
    assert sum(map(len, chosen(known, analysed, found, 60).values())) == 60  # type: ignore[arg-type]


def test_the_section_counts_families_members_and_the_rest(tmp_path: Path) -> None:
    problems: list[str] = []
    (hook,) = section([families(tmp_path)], problems)
    assert (hook["families"], hook["members"], hook["alone"]) == (2, 4, 1)
    assert problems == []
