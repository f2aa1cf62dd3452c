import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis import families as module
from sae_sweep.analysis.dictionaries import random_rows
from sae_sweep.analysis.families import find_families
from sae_sweep.config import SaeSweepError

NAN = float("nan")


def entry(name, decoder, densities=None, init_match=0.0, **keys):
    return ComparisonEntry(name, keys, decoder, init_match, densities)


def naive(entries, threshold):
    """The definition by sets, one pair of features at a time."""
    nodes = {
        (r, i): row / row.norm()
        for r, one in enumerate(entries)
        for i, row in enumerate(one.decoder)
        if row.isfinite().all() and row.any() and (one.densities is None or one.densities[i] > 0)
    }

    rows = torch.stack(list(nodes.values())) if nodes else torch.empty(0, 1)
    table = (rows @ rows.T).tolist()
    cosines = {
        (a, b): c for a, row in zip(nodes, table, strict=True) for b, c in zip(nodes, row, strict=True)
    }

    def best(node, run):
        others = [other for other in nodes if other[0] == run]
        return min(others, key=lambda other: (-cosines[node, other], other), default=None)

    edges = []
    for node in nodes:
        for run in range(node[0] + 1, len(entries)):
            other = best(node, run)
            if other is not None and best(other, node[0]) == node:
                edges.append((cosines[node, other], node, other))
    edges.sort(key=lambda edge: (-edge[0], edge[1][0], edge[2][0], edge[1][1], edge[2][1]))
    components = {node: {node} for node in nodes}
    for cosine, node, other in edges:
        one, two = components[node], components[other]
        if cosine > threshold and not {run for run, _ in one} & {run for run, _ in two}:
            for member in one | two:
                components[member] = one | two
    return {frozenset(component) for component in components.values() if len(component) > 1}, nodes


def members(found):
    ends = found.offsets.tolist()
    pairs = list(zip(found.member_runs.tolist(), found.member_features.tolist(), strict=True))
    return [pairs[start:end] for start, end in itertools.pairwise(ends)]


def dictionaries(runs, width, seed, tied):
    """Dictionaries of unequal sizes that share noisy directions, or few exact ones that are often equal."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(8, width, generator=generator)
    made = []
    for _ in range(runs):
        n = int(torch.randint(1, 9, (1,), generator=generator))
        if tied:
            one_hot = torch.eye(width)[torch.randint(width, (n,), generator=generator)]
            made.append(one_hot * torch.randint(-1, 2, (n, 1), generator=generator))
        else:
            noise = torch.randn(n, width, generator=generator)
            made.append(truth[torch.randperm(8, generator=generator)[:n]] + 0.4 * noise)
    return made


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 5), st.integers(2, 5), st.integers(0, 10_000), st.booleans(), st.sampled_from([0.1, 0.7])
)
def test_equals_the_definition(runs, width, seed, tied, threshold):
    made = dictionaries(runs, width, seed, tied)
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for run, decoder in enumerate(made):
        if run % 2:
            decoder[torch.rand(len(decoder), generator=generator) < 0.2, 0] = NAN
        densities = (torch.rand(len(decoder), generator=generator) > 0.2).float() if run % 3 == 0 else None
        entries.append(entry(f"run{run}", decoder, densities))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EDGES_AT_ONCE", 3)
        patch.setattr(module, "_FAMILIES_AT_ONCE", 2)
        found = find_families(entries, threshold)
    expected, nodes = naive(entries, threshold)
    assert {frozenset(family) for family in members(found)} == expected
    assert found.nodes == tuple(sum(node[0] == run for node in nodes) for run in range(runs))
    for family, cosine in zip(members(found), found.mean_cosine.tolist(), strict=True):
        pairs = [(nodes[a] @ nodes[b]).item() for a in family for b in family if a < b]
        assert cosine == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
        assert family == sorted(family)
        assert len({run for run, _ in family}) == len(family)
    order = list(zip((-found.sizes).tolist(), (-found.mean_cosine).tolist(), strict=True))
    assert order == sorted(order)
    for row, family in zip(found.presence.tolist(), members(found), strict=True):
        assert [run for run, there in enumerate(row) if there] == [run for run, _ in family]
    assert sum(found.orphans) + len(found.member_runs) == len(nodes)


def test_the_strongest_edges_come_first_so_that_no_chain_leads_through_one_sae():
    """b lies between two features of c; the nearer one joins it, and the other one finds a."""

    def direction(degrees):
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    entries = [
        entry("a", torch.tensor([direction(0)])),
        entry("b", torch.tensor([direction(20)])),
        entry("c", torch.tensor([direction(-30), direction(35)])),
    ]
    found = find_families(entries, 0.7)
    # b-c1 (15 degrees), a-b (20 degrees, c1 with it), and a-c0 (30 degrees), whose run c is taken
    assert members(found) == [[(0, 0), (1, 0), (2, 1)]]
    assert found.orphans == (0, 0, 1)


def test_the_order_of_runs_changes_no_family():
    made = [entry(f"run{i}", rows) for i, rows in enumerate(dictionaries(4, 5, 3, tied=False))]
    found, back = find_families(made, 0.5), find_families(made[::-1], 0.5)
    assert len(found.sizes) > 2
    names = [
        {frozenset((one.runs[run], feature) for run, feature in family) for family in members(one)}
        for one in (found, back)
    ]
    assert names[0] == names[1]


def test_undertrained_runs_are_left_out_and_said():
    rows = random_rows(10, 6, 0)
    found = find_families([entry("a", rows), entry("b", rows, init_match=0.3), entry("c", rows, k=16)])
    assert (found.runs, found.undertrained) == (("a", "c"), ("b",))
    assert found.keys == ({}, {"k": 16})
    assert found.sizes.tolist() == [2] * 10


def test_what_is_left_out_of_a_run_is_said():
    rows = random_rows(5, 6, 0)
    damaged = rows.clone()
    damaged[0], damaged[1, 1] = 0, NAN
    found = find_families([entry("a", rows), entry("b", damaged, densities=torch.tensor([1.0, 1, 1, 1, 0]))])
    assert found.left_out == ("", "1 all zero, 1 NaN or inf, 1 dead")
    assert found.nodes == (5, 2)
    assert sorted(members(found)) == [[(0, 2), (1, 2)], [(0, 3), (1, 3)]]


@pytest.mark.parametrize("rows", [torch.zeros(3, 4), torch.full((3, 4), NAN)])
def test_a_dictionary_without_usable_rows_has_no_families(rows):
    found = find_families([entry("a", random_rows(5, 4, 0)), entry("b", rows)])
    assert (len(found.sizes), found.orphans, found.presence.shape) == (0, (5, 0), (0, 2))
    assert len(find_families([entry("a", rows), entry("b", rows)]).sizes) == 0


def test_progress_counts_pairs():
    seen = []
    rows = random_rows(4, 4, 0)
    entries = [entry(name, rows) for name in "abc"]
    find_families(entries, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a", torch.eye(3))], "1 SAE to compare; at least 2 are needed"),
        (
            [entry("a", torch.eye(3)), entry("b", torch.eye(3), init_match=0.5)],
            r"1 SAE to compare \(1 left out, they still match their own start\)",
        ),
        ([entry("a", torch.eye(3)), entry("a", torch.eye(3))], "the same name"),
        ([entry("a", torch.eye(3)), entry("b", torch.eye(4))], "not d_in a 3, b 4"),
    ],
)
def test_refuses(entries, message):
    with pytest.raises(SaeSweepError, match=message):
        find_families(entries)
