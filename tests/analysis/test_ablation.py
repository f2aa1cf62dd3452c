import numpy as np
import pytest
import torch

from sae_sweep.analysis.ablation import ablate
from sae_sweep.analysis.features import Subject, Text
from sae_sweep.config import SaeSweepError, TopKConfig
from sae_sweep.saes import build_sae
from tests.analysis.test_features import SEQ, SPECIAL, VOCABULARY, D, TinyLM

LAYER = 1


@pytest.fixture
def text():
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (301, SEQ))  # batches do not come out even
    tokens[:, 0] = tokens[5, 4] = SPECIAL
    return Text(tokens, tokens != SPECIAL)


@pytest.fixture
def subject():
    return Subject(build_sae(TopKConfig(k=3), D, 16, seed=3, numerics="modern"), LAYER)


def naive(subject, text, removed):
    """Mean loss of each sequence with these features at 0, and how many are active at a token."""
    ids, keep, lm, sae = torch.from_numpy(text.tokens), torch.from_numpy(text.mask), TinyLM(), subject.sae
    x = lm.residuals(ids, [LAYER])[LAYER]
    with torch.no_grad():
        inputs, f = sae.normalise(x), sae.encode(x)
        active = (f[keep][:, removed] != 0).sum() / keep.sum()
        f[..., removed] = 0
        spliced = torch.where(keep[..., None], inputs.undo(sae.decode_normalised(f)), x)
    losses, counted = lm.losses(ids, LAYER, lambda _: spliced), keep[:, :-1]
    return (losses * counted).sum(1) / counted.sum(1), active


def test_the_loss_without_each_set_is_a_naive_one(subject, text):
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[[2, 5, 9]] = True
    sets = {"some": chosen, "all": torch.ones(16, dtype=torch.bool)}
    whole = naive(subject, text, torch.zeros(16, dtype=torch.bool))[0]
    rows = {row.removed: row for row in ablate(subject, TinyLM(parts=2), text, sets)}
    assert list(rows) == ["nothing", "some", "all"]
    assert rows["nothing"].increase.value == 0
    for name, removed in sets.items():
        each, active = naive(subject, text, removed)
        assert rows[name].loss == pytest.approx(each.double().mean().item(), rel=1e-5)
        assert rows[name].increase.value == pytest.approx((each - whole).mean().item(), abs=1e-5)
        assert rows[name].density == pytest.approx(active.item())
        assert rows[name].increase.low < rows[name].increase.value < rows[name].increase.high
    assert (rows["some"].features, rows["all"].density) == (3, pytest.approx(3, abs=0.05))


def test_one_sequence_is_too_few(subject, text):
    with pytest.raises(SaeSweepError, match="fewer than two sequences"):
        ablate(subject, TinyLM(), Text(text.tokens[:1], text.mask[:1]), {})
