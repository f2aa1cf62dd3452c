import functools
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from sae_sweep.analysis import evaluate, evaluation, language_model_baselines
from sae_sweep.analysis.statistics import rare_tokens
from sae_sweep.config import EvaluationConfig, SaeSweepError, TopKConfig
from sae_sweep.saes import build_sae

D_IN, D_SAE, VOCABULARY, SPECIAL = 6, 10, 12, 0


class TinyLM:
    """Embedding, residual, unembedding of a running mean: a position's residual also moves later losses."""

    def __init__(self, parts=1):
        generator = torch.Generator().manual_seed(1)
        self.embed = 2 * torch.randn(VOCABULARY, D_IN, generator=generator) + 1
        self.unembed = torch.randn(D_IN, VOCABULARY, generator=generator)
        self.parts = parts
        self.whole_passes = 0

    def losses(self, tokens, layer=None, replace=None, residual=None):
        assert layer == 3
        self.whole_passes += residual is None
        known = [None] * self.parts if residual is None else residual.chunk(self.parts)
        return torch.cat(
            [
                self._losses(part, replace, of)
                for part, of in zip(tokens.chunk(self.parts), known, strict=True)
            ]
        )

    def _losses(self, tokens, replace, residual):
        if residual is None:
            residual = self.embed[tokens]
        if replace is not None:
            residual = replace(residual)
        mean = residual.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        logits = (mean @ self.unembed)[:, :-1]
        return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


class TinySAE:
    """Centres each token, encodes by ReLU, decodes with a bias."""

    def __init__(self, scale=1.0):
        generator = torch.Generator().manual_seed(2)
        self.W_dec = scale * torch.randn(D_SAE, D_IN, generator=generator) / 3
        self.b_dec = 0.1 * torch.randn(D_IN, generator=generator)

    def normalise(self, x):
        mean = x.mean(-1, keepdim=True)
        return SimpleNamespace(x=x - mean, undo=lambda y: y + mean)

    def encode(self, x):
        return torch.relu(self.normalise(x).x @ self.W_dec.T - 1)

    def decode_normalised(self, f):
        return f @ self.W_dec + self.b_dec


class PerfectSAE(TinySAE):
    """Reconstructs exactly: 2 * d_in latents hold the positive and the negative part."""

    def __init__(self):
        self.W_dec = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
        self.b_dec = torch.zeros(D_IN)

    def encode(self, x):
        return torch.relu(self.normalise(x).x @ self.W_dec.T)


@pytest.fixture(autouse=True)
def _a_third_is_rare(monkeypatch):
    """Take the rarest third of the tokens: a twentieth of the few here would be one, which does not vary."""
    monkeypatch.setattr(evaluation, "rare_tokens", functools.partial(rare_tokens, share=0.3))


@pytest.fixture
def held_out():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (70, 8), dtype=np.int32)
    tokens[:, 0] = SPECIAL
    tokens[rng.random(tokens.shape) < 0.1] = SPECIAL
    return tokens, tokens != SPECIAL


def direct(lm, sae, tokens, mask):
    """Every metric by its formula, on all tokens at once, in float64."""
    ids, keep = torch.from_numpy(tokens).long(), torch.from_numpy(mask)
    x = lm.embed[ids][keep]
    entered, f = sae.normalise(x), sae.encode(x)
    out = sae.decode_normalised(f)

    def loss(values):
        patched = lm.embed[ids].clone()
        patched[keep] = values
        return lm.losses(ids, 3, lambda _: patched)[keep[:, :-1]].double().mean().item()

    def explained(x, x_hat):
        x, x_hat = x.double(), x_hat.double()
        variance = x.square().sum(1).mean() - x.mean(0).square().sum()
        return 1 - ((x - x_hat).square().sum(1).mean() / variance).item()

    zero = sae.decode_normalised(torch.zeros_like(f))
    counts = [int((ids[keep] == token).sum()) for token in ids[keep]]
    most = max(n for n in counts if sum(count <= n for count in counts) <= 0.3 * len(counts))
    rare = torch.tensor([count <= most for count in counts])
    clean, spliced, zeroed, averaged = loss(x), loss(entered.undo(out)), loss(0 * x), loss(x.mean(0))
    return {
        "ce_clean": clean,
        "ce_sae": spliced,
        "ce_zero": zeroed,
        "ce_mean": averaged,
        "ce_delta": spliced - clean,
        "ce_recovered_zero": (zeroed - spliced) / (zeroed - clean),
        "ce_recovered_mean": (averaged - spliced) / (averaged - clean),
        "explained_variance": explained(entered.x, out),
        "explained_variance_zero_latents": explained(entered.x, zero),
        "explained_variance_raw": explained(x, entered.undo(out)),
        "explained_variance_raw_zero_latents": explained(x, entered.undo(zero)),
        "mse": (entered.x - out).square().mean().item(),
        "mse_sum": (entered.x - out).square().sum(1).mean().item(),
        "mse_raw": (x - entered.undo(out)).square().mean().item(),
        "mse_raw_sum": (x - entered.undo(out)).square().sum(1).mean().item(),
        "explained_variance_rare": explained(entered.x[rare], out[rare]),
        "mse_rare": (entered.x[rare] - out[rare]).square().mean().item(),
        "cosine": functional.cosine_similarity(entered.x, out).mean().item(),
        "cosine_raw": functional.cosine_similarity(x, entered.undo(out)).mean().item(),
        "l0": (f > 0).sum(1).float().mean().item(),
        "l1": f.sum(1).mean().item(),
        "alive": float((f > 0).any(0).sum()),
        "dead": float((f == 0).all(0).sum()),
        "dense": float(((f > 0).float().mean(0) > 0.2).sum()),
        "ultra_rare": float(((f > 0).any(0) & ((f > 0).float().mean(0) < 0.05)).sum()),
        "density_floor": 1 / len(x),
        "tokens": float(len(x)),
    }


@pytest.mark.parametrize("parts", [1, 3])
def test_equals_direct_formulas(held_out, monkeypatch, parts):
    """Also in small batches, and with an LM that runs a batch in parts."""
    monkeypatch.setattr("sae_sweep.analysis.losses.BATCH_TOKENS", 100)
    lm, sae, config = TinyLM(parts), TinySAE(), EvaluationConfig(dense=0.2, ultra_rare=0.05)
    result = evaluate(sae, lm, *held_out_args(held_out), config)
    expected = direct(TinyLM(), sae, *held_out)
    assert result.metrics.keys() == expected.keys()
    assert result.metrics == pytest.approx(expected, rel=1e-5)
    assert result.tokens == held_out[1].sum()
    assert result.metrics["ultra_rare"] + result.metrics["dense"] > 0


def held_out_args(held_out):
    tokens, mask = held_out
    return tokens, 3, mask


def test_a_real_sae_fits_the_protocol(held_out):
    sae = build_sae(TopKConfig(k=2), D_IN, D_SAE, seed=0, numerics="modern").requires_grad_(False)
    config = EvaluationConfig(dense=0.2, ultra_rare=0.05)
    metrics = evaluate(sae, TinyLM(), *held_out_args(held_out), config).metrics
    assert metrics == pytest.approx(direct(TinyLM(), sae, *held_out), rel=1e-5)
    assert 0 < metrics["l0"] <= 2


def test_given_baselines_are_used_and_equal_the_computed(held_out):
    lm, sae = TinyLM(), TinySAE()
    baselines = language_model_baselines(lm, *held_out_args(held_out), torch.device("cpu"))
    computed = evaluate(sae, lm, *held_out_args(held_out))
    assert evaluate(sae, lm, *held_out_args(held_out), baselines=baselines).metrics == computed.metrics
    other = evaluate(sae, lm, *held_out_args(held_out), baselines=baselines._replace(ce_clean=1.0))
    assert other.metrics["ce_delta"] == computed.metrics["ce_sae"] - 1


@pytest.mark.parametrize(
    ("room", "whole_passes"), [(2**30, 1), (70 * 8 * D_IN * 4, 1), (70 * 8 * D_IN * 4 - 1, 4)]
)
def test_the_layers_before_the_hook_run_once_if_the_residuals_can_be_kept(
    held_out, monkeypatch, room, whole_passes
):
    monkeypatch.setattr("sae_sweep.analysis.losses.BATCH_TOKENS", 100)
    expected = evaluate(TinySAE(), TinyLM(), *held_out_args(held_out))
    monkeypatch.setattr("sae_sweep.analysis.losses.KEPT_RESIDUALS_BYTES", room)
    lm = TinyLM(parts=2)
    result = evaluate(TinySAE(), lm, *held_out_args(held_out))
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-6)
    batches = 6  # of 12 sequences
    assert lm.whole_passes == whole_passes * batches


def test_a_perfect_sae_recovers_everything(held_out):
    metrics = evaluate(PerfectSAE(), TinyLM(), *held_out_args(held_out)).metrics
    assert metrics["ce_recovered_zero"] == pytest.approx(1, abs=1e-5)
    assert metrics["ce_recovered_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert metrics["explained_variance_raw"] == pytest.approx(1, abs=1e-6)
    assert metrics["explained_variance_zero_latents"] < 0.1
    assert metrics["cosine"] == pytest.approx(1, abs=1e-6)


def test_masked_positions_keep_their_activation_and_count_nowhere(held_out):
    """The residual at special tokens changes no statistic of the SAE and is never patched."""
    changed = []

    class Watching(TinyLM):
        def _losses(self, tokens, replace, residual):
            def watched(before):
                after = replace(before)
                special = tokens == SPECIAL
                assert torch.equal(after[special], before[special])
                changed.append(bool((after != before).any()))
                return after

            return super()._losses(tokens, watched, residual)

    usual, odd = Watching(), Watching()
    odd.embed[SPECIAL] = 1e4
    first = evaluate(TinySAE(), usual, *held_out_args(held_out))
    second = evaluate(TinySAE(), odd, *held_out_args(held_out))
    assert True in changed
    torch.testing.assert_close(first.densities, second.densities)
    for name in ("explained_variance", "explained_variance_raw", "mse_raw", "l0", "tokens"):
        assert first.metrics[name] == second.metrics[name]


def test_refuses_broken_weights_and_empty_text(held_out):
    with pytest.raises(SaeSweepError, match=r"evaluation at layer 3: ce_sae, mse, mse_raw, l1 not finite"):
        evaluate(TinySAE(float("nan")), TinyLM(), *held_out_args(held_out))
    tokens, mask = held_out
    with pytest.raises(SaeSweepError, match="has 0 tokens that are not special"):
        evaluate(TinySAE(), TinyLM(), tokens, 3, np.zeros_like(mask))
    with pytest.raises(SaeSweepError, match=r"must both be \[n, seq_len\]"):
        inspect.unwrap(evaluate)(TinySAE(), TinyLM(), tokens, 3, mask[:, :-1])  # as outside of the tests


def test_rare_tokens_are_those_of_the_ids_that_occur_least() -> None:
    """A twentieth of 100 tokens is 5: three that occur once and the pair that occurs twice, and no others."""
    ids = [1, 2, 3, 4, 4, *[5] * 3, *[6] * 3, *[7] * 3, *[8] * 3, *[9] * 83]
    tokens = np.array([[0, *ids]])
    rare = rare_tokens(tokens, tokens != 0, 0.05)
    assert tokens[rare].tolist() == [1, 2, 3, 4, 4]
    few = np.array([[5, 5, 6, 6, 6, 0, 0]])
    assert few[rare_tokens(few, few != 0, 0.05)].tolist() == [5, 5]
    masked = np.array([[5, 5, 6, 6, 6, 7]])
    assert masked[rare_tokens(masked, masked != 7, 0.05)].tolist() == [5, 5]
