import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import match, neighbours
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.neighbours import mutual, nearest
from sae_sweep.config import SaeSweepError


def naive(cosines, most, absolute):
    """For each row the best columns, by falling cosine and then by their numbers, one at a time."""
    values = [[abs(c) if absolute else c for c in row] for row in cosines.tolist()]
    return [sorted(range(len(row)), key=lambda j: (-row[j], j))[:most] for row in values]


def grid_rows(n, width, seed):
    """Rows of 0, 1 and -1: their products are exact, and many are equal."""
    return torch.randint(-1, 2, (n, width), generator=torch.Generator().manual_seed(seed)).float() / 8


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 5), st.integers(0, 10_000))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 6), st.booleans(), st.sampled_from([1, 600, 1 << 24]))
def test_equals_the_definition_with_ties_whatever_the_block(shape, most, absolute, elements):
    n_a, n_b, width, seed = shape
    a, b = grid_rows(n_a, width, seed), grid_rows(n_b, width, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_BLOCK_ELEMENTS", elements)
        found = nearest(a, b, most, absolute=absolute)
    cosines = a @ b.T
    assert found.index_a.tolist() == naive(cosines, most, absolute)
    assert found.index_b.tolist() == naive(cosines.T, most, absolute)
    values = cosines.abs() if absolute else cosines
    assert torch.equal(found.cosines_a, values.gather(1, found.index_a))
    assert torch.equal(found.cosines_b, values.T.gather(1, found.index_b))


def test_agrees_with_the_ratio_of_the_study():
    a, b = random_rows(70, 6, 0), random_rows(50, 6, 1)
    found, known = nearest(a, b, 4), match(a, b)
    torch.testing.assert_close(found.cosines_a[:, 0], known.top1_a)
    torch.testing.assert_close(found.cosines_b[:, 0], known.top1_b)
    assert (found.mmcs_a_to_b, found.mmcs_b_to_a) == pytest.approx((known.mmcs_a_to_b, known.mmcs_b_to_a))


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_mutual_neighbours_name_each_other(shape):
    n_a, n_b, width, seed = shape
    a, b = grid_rows(n_a, width, seed), grid_rows(n_b, width, seed + 1)
    found = mutual(nearest(a, b))
    best_a, best_b = (naive(c, 1, False) for c in (a @ b.T, b @ a.T))
    expected = [(i, j) for i, (j,) in enumerate(best_a) if best_b[j] == [i]]
    assert list(zip(found.a.tolist(), found.b.tolist(), strict=True)) == expected
    assert torch.equal(found.cosines, (a[found.a] * b[found.b]).sum(1))
    assert len(expected) >= 1


def test_opposite_directions_match_by_the_size_of_their_cosine():
    a = random_rows(5, 8, 0)
    found = nearest(a, -a, absolute=True)
    assert found.index_a[:, 0].tolist() == list(range(5))
    torch.testing.assert_close(found.cosines_a[:, 0], torch.ones(5))
    assert nearest(a, -a).cosines_a.max() < 0.99


def test_a_stop_is_obeyed_between_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", 1)
    blocks = []
    nearest(random_rows(70, 4, 0), random_rows(10, 4, 1), between=lambda: blocks.append(1))
    assert len(blocks) == math.ceil(70 / 32)


@pytest.mark.parametrize(
    ("a", "b", "most", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 1, "rows of 3 and 4 entries cannot be compared"),
        (torch.ones(2, 3), torch.ones(0, 3), 1, "no features that could be matched"),
        (torch.ones(2, 3), torch.ones(2, 3), 0, "most=0 must be at least 1"),
    ],
)
def test_refuses(a, b, most, message):
    with pytest.raises(SaeSweepError, match=message):
        nearest(a, b, most)
