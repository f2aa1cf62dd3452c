"""Differences between datasets: counts against loops, statistics against scipy and simulation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sae_sweep.analysis import dataset_diff
from sae_sweep.analysis.contexts import Contexts, Window
from sae_sweep.analysis.dataset_diff import (
    DocumentText,
    Fired,
    benjamini_hochberg,
    difference,
    fisher,
    newcombe,
    read_documents,
    wilson,
)
from sae_sweep.analysis.features import Subject, Text
from sae_sweep.report.diff_files import DISCOVERY_RATE, Compared, diff_text, more_often

D_SAE, VOCABULARY = 7, 30
NOWHERE = Contexts(1, 1, Window(0, 0), torch.device("cpu")).excerpts()


@pytest.fixture
def documents():
    """Documents of one to six sequences of eight tokens; BOS and padding do not count."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(9), rng.integers(1, 7, 9))
    tokens = rng.integers(1, VOCABULARY, (len(owners), 8), dtype=np.int32)
    mask = rng.random(tokens.shape) < 0.8
    return DocumentText(Text(tokens, mask), owners)


def read(documents, monkeypatch, batch):
    """Features fire where a token's embedding says so."""
    monkeypatch.setattr(dataset_diff, "BATCH_TOKENS", batch)
    latents = torch.randn(VOCABULARY, D_SAE, generator=torch.Generator().manual_seed(3)).sub(0.8).relu()
    latents[:, 0] = 0
    sae = SimpleNamespace(W_dec=torch.zeros(D_SAE, D_SAE), encode=lambda x: x)
    lm = SimpleNamespace(residuals=lambda ids, layers: {3: latents[ids]})
    return latents, read_documents(Subject(sae, 3), lm, documents, contexts=2, window=Window(1, 1))


@pytest.mark.parametrize("batch", [8, 24, 10_000])
def test_counts_are_those_of_a_loop_over_documents_however_they_are_cut(documents, monkeypatch, batch):
    latents, found = read(documents, monkeypatch, batch)
    text, owners = documents
    fires = (latents[torch.from_numpy(text.tokens).long()] > 0).numpy() & text.mask[..., None]
    by_document = np.stack([fires[owners == number].sum((0, 1)) for number in range(9)])
    lengths = np.array([text.mask[owners == number].sum() for number in range(9)])
    np.testing.assert_array_equal(found.tokens, lengths)
    np.testing.assert_array_equal(found.documents, (by_document > 0).sum(0))
    np.testing.assert_array_equal(found.counts, by_document.sum(0))
    np.testing.assert_array_equal(found.squares, (by_document**2).sum(0))
    np.testing.assert_array_equal(found.products, (by_document * lengths[:, None]).sum(0))
    strongest = [latents[:, i][text.tokens[text.mask]].max() for i in range(D_SAE)]
    kept = found.contexts
    first = kept.activations[kept.ranks == 0, found.before]
    np.testing.assert_allclose(first, [strongest[i] for i in kept.features[kept.ranks == 0]])
    centres = kept.tokens[:, found.before].numpy()
    np.testing.assert_array_equal(centres, text.tokens[kept.sequences, kept.positions])


def of(by_document, lengths):
    by_document = np.asarray(by_document, float)
    sums = (by_document.sum(0).astype(int), (by_document**2).sum(0), (by_document * lengths[:, None]).sum(0))
    return Fired(lengths, (by_document > 0).sum(0), *sums, contexts=NOWHERE, before=0)


def test_intervals_of_token_frequencies_are_those_of_a_bootstrap_over_documents():
    rng = np.random.default_rng(1)
    lengths = rng.integers(50, 400, 80)
    rate = np.array([0.02, 0.3]) * rng.gamma(2, 0.5, (80, 1))  # tokens of a document resemble each other
    counts = rng.binomial(lengths[:, None], rate.clip(0, 1))
    found = of(counts, lengths)
    drawn = rng.integers(0, 80, (4000, 80))
    means = counts[drawn].sum(1) / lengths[drawn].sum(1)[:, None]
    np.testing.assert_allclose(np.sqrt(found.variance), means.std(0), rtol=0.06)
    apart = difference(found, of(counts[:40], lengths[:40]))
    np.testing.assert_allclose(apart.tokens, apart.tokens_a - apart.tokens_b)
    assert (apart.tokens_low < apart.tokens).all()
    assert (apart.tokens < apart.tokens_high).all()


def test_what_fires_nowhere_is_not_tested_and_what_differs_most_is_first():
    lengths = np.full(20, 10)
    a = np.tile([0, 1, 1, 1, 0, 0], (20, 1))
    b = np.tile([0, 1, 0, 1, 1, 1], (20, 1))
    b[:5, 3] = b[:10, 4] = b[:8, 5] = 0
    found = difference(of(a, lengths), of(b, lengths))
    assert found.order.tolist() == [2, 5, 4, 3, 0, 1]
    assert found.documents_a.tolist() == [0, 1, 1, 1, 0, 0]
    assert found.documents_b.tolist() == [0, 1, 0, 0.75, 0.5, 0.6]
    assert np.isnan(found.documents_q[0])
    assert found.documents_q[1] == 1
    assert found.documents_q[2] == pytest.approx(5 * found.documents_p[2])
    assert found.documents[[2, 4]].tolist() == [1, -0.5]
    assert found.tokens[[2, 4]].tolist() == pytest.approx([0.1, -0.05])
    one = Compared("run", of(a, lengths), of(b, lengths), found, [])
    assert found.documents_p[3] < DISCOVERY_RATE < found.documents_q[3]
    assert [one.ranked(side, 9) for side in (1, -1)] == [[2], [5, 4]]
    assert more_often(one) == (1, 2)


def test_a_feature_is_shown_with_its_context_on_the_side_where_it_is_listed():
    """Each of two features fires in all documents of one text, and in three of the other."""
    latents = torch.zeros(6, 2)
    latents[1, 0] = latents[2, 1] = 1
    sae = SimpleNamespace(W_dec=torch.zeros(2, 2), encode=lambda x: x)
    lm = SimpleNamespace(residuals=lambda ids, layers: {3: latents[ids]})
    fired = []
    for own, other, name in ((1, 2, 3), (2, 1, 4)):
        tokens = np.tile(np.array([name, own, name, 5], np.int32), (30, 1))
        tokens[:3, 3] = other
        text = DocumentText(Text(tokens, np.ones(tokens.shape, bool)), np.arange(30))
        fired.append(read_documents(Subject(sae, 3), lm, text, contexts=2, window=Window(1, 1)))
    one = Compared("run", *fired, difference(*fired), ["", "1", "2", "a", "b", ""])
    of_a, of_b = diff_text(("A", "B"), one, 80).rstrip().split("\n\n")
    for side, here, there, row in ((of_a, "A", "B", ("0", "a«1»a")), (of_b, "B", "A", ("1", "b«2»b"))):
        title, _, _, line = side.splitlines()
        assert title == f"More documents of {here} (here) than of {there} (there):"
        feature, *shares, _, context = line.split()
        assert (feature, shares, context) == (row[0], ["100", "10"], row[1])


def test_p_is_twice_scipys_smaller_tail():
    x, y = np.array([0, 3, 9, 20]), np.array([0, 9, 1, 25])
    for p, one, other in zip(fisher(x, 20, y, 25), x, y, strict=True):
        table = [[one, 20 - one], [other, 25 - other]]
        tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert p == pytest.approx(min(1, 2 * min(tails)))


def test_equal_datasets_are_rarely_called_different():
    rng = np.random.default_rng(2)
    x, y = rng.binomial(20, 0.3, 2000), rng.binomial(25, 0.3, 2000)
    p = fisher(x, 20, y, 25)
    assert (p < 0.05).mean() < 0.05
    low, high = newcombe(x, 20, y, 25)
    assert 0.93 < ((low <= 0) & (high >= 0)).mean() < 0.98
    assert (benjamini_hochberg(p) < 0.05).sum() == 0


def test_a_share_has_wilsons_interval():
    for x in (0, 3, 20):
        expected = stats.binomtest(x, 20).proportion_ci(method="wilson")
        np.testing.assert_allclose([part.item() for part in wilson(np.array([x]), 20)], expected, atol=1e-12)


def test_newcombes_example():
    """56/70 against 48/80, in the first column of his Table II."""
    low, high = newcombe(np.array([56]), 70, np.array([48]), 80)
    assert (low[0], high[0]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_corrected_rates_are_those_of_the_step_up_procedure():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()
