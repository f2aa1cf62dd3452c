import numpy as np

from sae_sweep.activations import token_mask
from sae_sweep.config import PackingConfig

TOKENS = np.array([[0, 5, 9], [7, 0, 3]], dtype=np.int32)


def test_special_tokens_do_not_count():
    mask = token_mask(TOKENS, {0, 3}, PackingConfig())
    np.testing.assert_array_equal(mask, [[False, True, True], [True, False, False]])


def test_everything_counts_without_masking():
    assert token_mask(TOKENS, {0, 3}, PackingConfig(mask_special=False)).all()
