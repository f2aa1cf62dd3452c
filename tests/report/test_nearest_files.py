import numpy as np
import pytest
import torch

from sae_sweep.analysis import compare, match
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.config import SaeSweepError
from sae_sweep.report.nearest_files import read_nearest, write_nearest


def entry(name, rows, seed, dead=()):
    densities = torch.ones(rows)
    densities[list(dead)] = 0
    decoder = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return ComparisonEntry(name, {"seed": seed}, decoder, 0.0, densities)


def test_what_is_read_is_what_a_pair_alone_gives(tmp_path):
    entries = [entry("a b", 9, 0, dead=(2, 5)), entry("b.c", 13, 1), entry("c", 4, 2, dead=range(4))]
    write_nearest(tmp_path, compare(entries))
    for one in entries:
        found = read_nearest(tmp_path, one.name)
        assert list(found) == [other.name for other in entries if other is not one]
        for other in (other for other in entries if other is not one):
            pair, nearest = match(one.decoder, other.decoder), found[other.name]
            assert nearest.feature.tolist() == pair.index_a.tolist()
            np.testing.assert_allclose(nearest.cosine, pair.top1_a, atol=1e-6)


def test_files_of_saes_that_are_gone_are_removed(tmp_path):
    write_nearest(tmp_path, compare([entry("a", 3, 0), entry("b", 3, 1), entry("c", 3, 2)]))
    write_nearest(tmp_path, compare([entry("a", 3, 0), entry("b", 3, 1)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    with pytest.raises(SaeSweepError, match=r"c\.parquet.*task=match"):
        read_nearest(tmp_path, "c")
