"""Which features fire on the same tokens."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.codes import Codes

_COUNTS_AT_ONCE = 2**23
"""Pairs of features in a block: 200 MB with their counts and similarities."""


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
    for start in range(0, d_sae, max(1, _COUNTS_AT_ONCE // d_sae)):
        between()
        block = slice(start, start + max(1, _COUNTS_AT_ONCE // d_sae))
        joint = torch.from_numpy((by_feature[block] @ fires).toarray())
        _best_of_rows(joint, start, fired, found)
    return found


def _best_of_rows(
    joint: Int[Tensor, "block d_sae"], start: int, fired: Int[Tensor, " d_sae"], found: Partners
) -> None:
    """Write the best partners of a block of features into `found`."""
    places, most = torch.arange(len(joint)), min(found.ids.shape[1], joint.shape[1])
    joint[places, places + start] = 0  # a feature is no partner of its own
    either = fired[start : start + len(joint), None] + fired - joint
    jaccard = joint.double() / either.clamp(min=1)
    least = jaccard.topk(most, dim=1).values[:, -1:]
    rows, columns = ((jaccard >= least) & (joint > 0)).nonzero(as_tuple=True)
    order = jaccard[rows, columns].argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, columns = rows[order], columns[order]
    sizes = torch.bincount(rows, minlength=len(joint))
    ranks = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows]
    rows, columns, ranks = (part[ranks < most] for part in (rows, columns, ranks))
    place = (rows + start, ranks)
    found.ids[place] = columns
    found.counts[place] = joint[rows, columns].long()
    found.jaccard[place] = jaccard[rows, columns].float()
