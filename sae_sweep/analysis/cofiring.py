"""Which features fire on the same tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.codes import Codes

_PRODUCTS_AT_ONCE = 2**23
"""Bound on the non-zeros of a block of counts: 500 MB while they are sorted."""


class Partners(NamedTuple):
    """The features that each feature fires with, best first; id -1 where there are fewer."""

    ids: Int[Tensor, "d_sae most"]
    counts: Int[Tensor, "d_sae most"]
    """Tokens on which both fire."""
    jaccard: Float[Tensor, "d_sae most"]
    """Those tokens, as a share of the tokens on which either fires; NaN where there is no partner."""
    tokens: int
    """Tokens that were counted."""


def partners(codes: Codes, most: int, between: Callable[[], None] = lambda: None) -> Partners:
    """Find the `most` features of the highest Jaccard similarity of tokens for each feature.

    Args:
        codes: sparse codes of the text, or of its first part.
        most: partners per feature.
        between: called between blocks, to obey a stop.

    Exact on the tokens that `codes` holds; of equal partners the one of the lower number comes first.
    """
    from scipy.sparse import csr_array

    tokens, d_sae = len(codes.positions), codes.d_sae
    ones = np.ones(len(codes.features), dtype=np.int32)
    offsets = codes.offsets.numpy()
    if len(ones) < 2**31:
        offsets = offsets.astype(np.int32)  # as the indices, which would be copied into the wider type
    fires = csr_array((ones, codes.features.numpy(), offsets), shape=(tokens, d_sae))
    by_feature = fires.T.tocsr()
    fired = torch.from_numpy(np.diff(by_feature.indptr)).long()
    found = Partners(
        torch.full((d_sae, most), -1),
        torch.zeros((d_sae, most), dtype=torch.int64),
        torch.full((d_sae, most), torch.nan),
        tokens,
    )
    for block in _blocks(codes, fired):
        between()
        joint = (by_feature[block] @ fires).tocsr()
        joint.sort_indices()
        _best_of_rows(joint, block.start, fired, found)
    return found


def _blocks(codes: Codes, fired: Int[Tensor, " d_sae"]) -> list[slice]:
    """Consecutive features whose counts fit into memory: each has at most d_sae, or one per product."""
    per_token = codes.offsets.diff().double()
    mean = float(per_token.square().sum() / per_token.sum().clamp(min=1))
    cost = (fired.double() * mean).clamp(max=codes.d_sae).cumsum(0)
    number = (cost / _PRODUCTS_AT_ONCE).long()
    ends = [*(number.diff() != 0).nonzero()[:, 0].add(1).tolist(), codes.d_sae]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _best_of_rows(joint: Any, start: int, fired: Tensor, found: Partners) -> None:
    """Write the best partners of a block of features into `found`."""
    offsets = torch.from_numpy(joint.indptr).long()
    rows = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff()) + start
    columns, counts = torch.from_numpy(joint.indices).long(), torch.from_numpy(joint.data).long()
    others = rows != columns
    rows, columns, counts = rows[others], columns[others], counts[others]
    jaccard = counts.double() / (fired[rows] + fired[columns] - counts)
    order = jaccard.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows = rows[order]
    sizes = torch.bincount(rows - start, minlength=len(offsets) - 1)
    ranks = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows - start]
    kept = ranks < found.ids.shape[1]
    place, chosen = (rows[kept], ranks[kept]), order[kept]
    found.ids[place] = columns[chosen]
    found.counts[place] = counts[chosen]
    found.jaccard[place] = jaccard[chosen].float()
