"""One pass over text for several SAEs, against naive computations, on a language model of a few numbers."""

import math

import numpy as np
import pytest
import torch

from sae_sweep.analysis.contexts import Window
from sae_sweep.analysis.features import FeatureAnalysis, Kept, Subject, Text, analyse_features
from sae_sweep.analysis.statistics import FeatureStatistics
from sae_sweep.config import JumpReLUConfig, SaeSweepError, TopKConfig
from sae_sweep.saes import build_sae

D, SEQ, VOCABULARY, SPECIAL, N = 6, 8, 11, 0, 300


class TinyLM:
    """Two layers of a running mean; a residual moves the losses of all later positions."""

    def __init__(self, parts: int = 1) -> None:
        generator = torch.Generator().manual_seed(1)
        self.embed = 2 * torch.randn(VOCABULARY, D, generator=generator) + 1
        self.unembed = torch.randn(D, VOCABULARY, generator=generator)
        self.parts = parts

    def residuals(self, tokens, layers):
        return {layer: self.embed[tokens] * (1 + layer) for layer in layers}

    def losses(self, tokens, layer=None, replace=None, residual=None):
        losses = []
        for part in tokens.chunk(self.parts):
            x = self.residuals(part, [layer or 0])[layer or 0]
            x = (replace(x) if replace else x) / (1 + (layer or 0))
            logits = (x.cumsum(1) / torch.arange(1, SEQ + 1)[:, None]) @ self.unembed
            losses.append(-logits[:, :-1].log_softmax(-1).gather(-1, part[:, 1:, None])[..., 0])
        return torch.cat(losses)


@pytest.fixture
def subjects():
    return {
        str(layer): Subject(build_sae(TopKConfig(k=3), D, 16, seed=layer, numerics="modern"), layer)
        for layer in (0, 1)
    }


@pytest.fixture
def text():
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (N, SEQ))
    tokens[:, 0] = tokens[5, 4] = SPECIAL
    return tokens, tokens != SPECIAL


def analyse(subjects, text, lm=None, **keys) -> dict[str, FeatureAnalysis]:
    kept = Kept(top=4, sample=5, window=Window(2, 2))
    return analyse_features(subjects, lm or TinyLM(), Text(*text), VOCABULARY, kept, **keys)


def test_every_part_equals_a_naive_computation(subjects, text):
    tokens, mask = text
    found = analyse(subjects, text)
    ids, keep, lm = torch.from_numpy(tokens), torch.from_numpy(mask), TinyLM()
    for name, (sae, layer) in ((name, (one.sae, one.layer)) for name, one in subjects.items()):
        x = lm.residuals(ids, [layer])[layer]
        with torch.no_grad():
            f, inputs = sae.encode(x), sae.normalise(x)
            out = sae.decode_normalised(f)
        spliced = torch.where(keep[..., None], inputs.undo(out), x)
        losses = lm.losses(ids, layer, lambda _, spliced=spliced: spliced)
        one = found[name]
        for position in range(1, SEQ):
            here = keep[:, position]
            assert one.firing.tokens[position] == here.sum()
            error = (inputs.x - out).square().mean(-1)[:, position][here].double().mean().item()
            assert one.mse.means[position].item() == pytest.approx(error, rel=1e-5)
            assert one.l1.means[position].item() == pytest.approx(
                f.sum(-1)[:, position][here].mean().item(), rel=1e-5
            )
            if position < SEQ - 1:
                expected = losses[:, position][here].mean().item()
                assert one.ce_sae.means[position].item() == pytest.approx(expected, rel=1e-5)
                expected = lm.losses(ids)[:, position][here].mean().item()
                assert one.ce_clean.means[position].item() == pytest.approx(expected, rel=1e-5)
        active, top = f[keep], one.top.excerpts()
        assert torch.equal(one.firing.fired, (active != 0).sum(0))
        alive = (active != 0).any(0).nonzero()[:, 0].tolist()
        for feature in alive:
            values = active[:, feature][active[:, feature] != 0].double().numpy()
            assert one.quantiles.quantiles([0.3])[0, feature].item() == pytest.approx(
                np.quantile(values, 0.3)
            )
            best = (f * keep[..., None])[..., feature].max(1).values.sort(descending=True, stable=True)
            first = int((top.features == feature).nonzero()[0])
            assert top.sequences[first] == best.indices[0]
            assert top.tokens[first, 2] == ids[best.indices[0], top.positions[first]]
            assert top.activations[first, 2].item() == pytest.approx(best.values[0].item())


def test_negative_activations_count_by_their_size_as_in_the_evaluation(text):
    sae = build_sae(JumpReLUConfig(), D, 16, seed=0, numerics="modern")
    with torch.no_grad():
        sae.threshold.fill_(-0.5)
    tokens, mask = text
    one = analyse({"a": Subject(sae, 0)}, text)["a"]
    with torch.no_grad():
        f = sae.encode(TinyLM().residuals(torch.from_numpy(tokens), [0])[0])[torch.from_numpy(mask)]
    assert (f < 0).any()
    evaluated = FeatureStatistics(16, torch.device("cpu"))
    evaluated.update(f)
    found = one.firing.by_feature()
    torch.testing.assert_close(found.density, evaluated.densities)
    torch.testing.assert_close(found.mean, evaluated.mean_activations, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.max, evaluated.max_activations)
    top = one.top.excerpts()
    assert torch.equal(top.priorities[top.ranks == 0].double(), found.max[found.active > 0])


def test_special_tokens_and_the_last_position_do_not_count(subjects, text):
    one = analyse(subjects, text)["0"]
    assert one.firing.tokens[0] == 0
    assert one.mse.means[0].isnan()
    assert one.ce_sae.counts[-1] == 0
    tokens, mask = text
    at = torch.from_numpy(~mask)
    with torch.no_grad():
        f = subjects["0"].sae.encode(TinyLM().residuals(torch.from_numpy(tokens), [0])[0])
    special = one.special.statistics()
    assert torch.equal(special.tokens, at.sum(0))
    for position in (0, 4):
        values = f[:, position][at[:, position]]
        assert special.active[position] == (values != 0).sum()
        assert special.mean[position].item() == pytest.approx(values[values != 0].double().mean().item())
        assert special.l0[position].item() == pytest.approx((values != 0).sum(1).double().mean().item())
    assert one.firing.tokens.sum() == text[1].sum()


def test_a_model_that_runs_a_batch_in_parts_gives_the_same(subjects, text):
    ours, theirs = analyse(subjects, text, TinyLM(parts=4)), analyse(subjects, text)
    torch.testing.assert_close(ours["1"].ce_sae.means, theirs["1"].ce_sae.means, equal_nan=True)


def test_text_without_tokens_that_count_is_refused(subjects, text):
    tokens, mask = text
    with pytest.raises(SaeSweepError, match="no tokens that are not special"):
        analyse(subjects, (tokens, np.zeros_like(mask)))


def test_it_asks_between_batches_whether_to_stop(subjects, text):
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        analyse(subjects, text, between=stop)
    assert math.isfinite(analyse(subjects, text)["0"].mse.means[1].item())
