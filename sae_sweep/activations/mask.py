"""Which positions count: the one policy for special tokens, in training, evaluation and patching."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import PackingConfig


def token_mask(
    tokens: NDArray[np.integer], special_ids: Collection[int], packing: PackingConfig
) -> NDArray[np.bool_]:
    """Return True where a position counts, in the shape of `tokens`.

    Special tokens do not count, unless `packing.mask_special` is off (the study), and then everything does.
    """
    if not packing.mask_special:
        return np.ones(tokens.shape, dtype=bool)
    return ~np.isin(tokens, list(special_ids))
