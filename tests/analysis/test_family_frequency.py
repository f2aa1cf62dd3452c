"""Families of one dataset beside another: which count, how often they fire, and which are held."""

import numpy as np
import pytest

from sae_sweep.analysis.family_frequency import FamilyFrequency, Member, family_frequencies, held_shares
from sae_sweep.report.family_frequency_files import _section, frequency_figure, sentence

TRAINED_ON = {"a1": "a", "a1 of k=8": "a", "a2": "a", "b1": "b", "b2": "b"}
SEEDS = {"a1": 1, "a1 of k=8": 1, "a2": 2, "b1": 1, "b2": 2}


def densities(value):
    return {
        (run, text): np.array([value(run, text), 0.5]) for run in TRAINED_ON for text in dict.fromkeys("ab")
    }


def test_a_family_counts_for_a_dataset_with_saes_of_two_of_its_seeds():
    members = [
        *(Member(0, "a1", 0), Member(0, "a2", 0), Member(0, "b1", 1)),
        *(Member(1, "b1", 0), Member(1, "b2", 1)),
        *(Member(2, "a1", 0), Member(2, "b1", 0)),
        *(Member(3, "a1", 0), Member(3, "weak", 0)),
        *(Member(4, "a1", 0), Member(4, "a1 of k=8", 0)),
    ]
    rates = {("a1", "a"): 0.2, ("a2", "a"): 0.4, ("a1", "b"): 0.01, ("a2", "b"): 0.03}
    found = family_frequencies(members, TRAINED_ON, SEEDS, densities(lambda *key: rates.get(key, 0.1)))
    assert [(one.family, one.home, one.other, one.held) for one in found] == [
        (0, "a", "b", True),
        (1, "b", "a", False),
    ]
    assert found[0].home_density == pytest.approx(0.3)
    assert found[0].other_density == pytest.approx(0.02)
    assert found[1].home_density == pytest.approx(0.3)  # 0.1 and 0.5


def test_families_whose_densities_are_unknown_are_left_out():
    members = [Member(0, "a1", 0), Member(0, "a2", 0), Member(1, "b1", 0)]
    known = densities(lambda *_: 0.1)
    del known["a2", "b"]
    assert family_frequencies(members, TRAINED_ON, SEEDS, known) == []


def test_a_dataset_without_saes_at_the_hook_holds_and_lacks_nothing():
    """As where each model of a sweep reads the text that it sampled itself."""
    members = [Member(0, "a1", 0), Member(0, "a2", 0)]
    assert family_frequencies(members, TRAINED_ON, SEEDS, densities(lambda *_: 0.1)) == []


def family(other_density, held, home_density=0.1, number=0):
    return FamilyFrequency(number, "a", "b", 2, home_density, other_density, held)


def test_shares_are_of_families_of_similar_relative_frequency():
    rare = [family(0.02, held) for held in (True, False, False, False)]
    even = [family(0.1, held) for held in (True, True, True, False)]
    shares = held_shares([*rare, *even, family(0.1, True, home_density=0)])
    assert [one.families for one in shares] == [0, 0, 4, 0, 4, 0]
    assert (shares[2].held, shares[4].held) == (0.25, 0.75)
    assert shares[2].low == pytest.approx(0.0456, abs=1e-4)
    assert np.isnan(shares[0].held)
    drawn = frequency_figure(shares)
    assert drawn.numbers["held"].to_pylist() == [None, None, 0.25, None, 0.75, None]
    assert drawn.numbers["ratio_to"].to_pylist()[-1] is None
    texts = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert texts == ["4", "4"]


def test_the_sentence_counts_cases_and_each_family_once():
    """A family beside two other datasets is two cases; the same number at another hook is another family."""
    rare = [family(0.02, held, number=3) for held in (True, False, False)]
    even = [family(0.1, True, number=3), family(0.1, False, number=4), family(0.1, True, home_density=0)]
    said = sentence({"L2": [*rare, *even], "L3": rare[:1]})
    assert "beside one other dataset: 6 cases (3 families)" in said
    assert "in 50% of the 4 cases (2 families) where its triggers are less than a third as frequent" in said
    assert "in 50% of the 2 cases (2 families) where its triggers are as frequent or more there" in said
    assert sentence({"": even}).startswith("Too few families")
    tables = {table.title: table for table in _section({"L2": [*rare, *even]}, [], [], "").tables}
    pooled, by_pair = tables.values()
    assert [row[1:] for row in pooled.rows if row[1]] == [(3, 1, pytest.approx(100 / 3)), (2, 2, 50)]
    assert (pooled.folded, by_pair.folded) == (False, True)


def test_points_of_many_pairs_are_of_the_same_pair_as_their_title():
    pairs = [(home, other) for home in "abcdef" for other in "abcdef" if home != other]
    found = [family(0.1, True)._replace(home=home, other=other) for home, other in pairs]
    drawn = frequency_figure(held_shares(found))
    assert [axes.get_title() for axes in drawn.figure.axes][:2] == ["a\nin b", "a\nin c"]
    assert len(drawn.figure.axes) == 20
    assert drawn.numbers.num_rows == 6 * len(pairs)
