"""Which features of two SAEs belong together, on disk."""

from pathlib import Path

import numpy as np
import pyarrow
import torch

from sae_sweep.analysis.dictionaries import usable_rows
from sae_sweep.analysis.neighbours import Nearest, mutual, nearest
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.report.parquet import write_parquet

_MOST = 4
"""Nearest features of the other SAE, as in the study."""


def write_matches(path: Path, a: ComparisonEntry, b: ComparisonEntry, device: torch.device) -> Path:
    """Write the nearest decoder rows of each feature: a row per feature of either SAE.

    Columns: sae (`a` or `b`), feature, nearest (numbers in the other SAE, best first), cosines, mutual
    (whether the first of them has this feature as its nearest too).

    Raises:
        SaeSweepError: if the file cannot be written; it is not left incomplete.
    """
    rows = [usable_rows([one.decoder]) for one in (a, b)]
    units = [one.unit.to(device) for one in rows]
    found = Nearest(*(part.cpu() for part in nearest(units[0], units[1], _MOST)))
    pairs = mutual(found)
    ids = [one.kept.ids for one in rows]
    sides = (
        ("a", ids[0], ids[1][found.index_a], found.cosines_a, pairs.a),
        ("b", ids[1], ids[0][found.index_b], found.cosines_b, pairs.b),
    )
    tables = [
        pyarrow.table(
            {
                "sae": [sae] * len(own),
                "feature": own.numpy().astype(np.int32),
                "nearest": pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(others.flatten().numpy().astype(np.int32)), others.shape[1]
                ).cast(pyarrow.list_(pyarrow.int32())),
                "cosines": pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(cosines.flatten().numpy()), cosines.shape[1]
                ).cast(pyarrow.list_(pyarrow.float32())),
                "mutual": torch.zeros(len(own), dtype=torch.bool).index_fill(0, both, True).numpy(),
            }
        )
        for sae, own, others, cosines, both in sides
    ]
    return write_parquet(path, pyarrow.concat_tables(tables))
