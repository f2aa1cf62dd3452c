"""Direct logit effects against a product of whole matrices."""

import pytest
import torch

from sae_sweep.activations.unembedding import Unembedding
from sae_sweep.analysis import logit_effects as module
from sae_sweep.analysis.logit_effects import logit_effects

D, D_SAE, VOCABULARY = 8, 30, 20


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("most", [1, 4, 50])
@pytest.mark.parametrize("at_once", [1, 70, 2**26])
def test_they_are_the_extremes_of_the_whole_product(monkeypatch, centred, most, at_once):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    W_dec, weight = (
        torch.randn(D_SAE, D, generator=generator),
        torch.randn(VOCABULARY, D, generator=generator),
    )
    gain = torch.rand(D, generator=generator)
    found = logit_effects(W_dec, Unembedding(gain, centred, weight), most)
    whole = ((W_dec - W_dec.mean(1, keepdim=True) * centred) * gain) @ weight.T
    whole -= whole.mean(1, keepdim=True)
    kept = min(most, VOCABULARY)
    order = whole.argsort(1, descending=True)
    assert torch.equal(found.promoted, order[:, :kept])
    assert torch.equal(found.suppressed, order.flip(1)[:, :kept])
    torch.testing.assert_close(found.promoted_effects, whole.gather(1, found.promoted))
    torch.testing.assert_close(found.suppressed_effects, whole.gather(1, found.suppressed))
