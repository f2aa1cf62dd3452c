"""Tools of the bundled model: the export equals the trained model, every held-out token is scored once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import pico_data
import pico_eval
import pico_model
from pico_model import ChunkedCrossEntropy, Pico, Shape, StackedMuon

SMALL = Shape(n_layer=2, n_head=2, d_model=16, n_ctx=12, vocab=50)


@pytest.fixture
def model() -> Pico:
    torch.manual_seed(0)
    model = Pico(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_computes_what_hugging_face_computes(model: Pico) -> None:
    from pico_export import hf_config
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**hf_config(SMALL, 0))).float().eval()
    missing, unexpected = theirs.load_state_dict(pico_model.hf_state(model), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    ids = torch.randint(0, SMALL.vocab, (3, SMALL.n_ctx))
    torch.testing.assert_close(model(ids) @ model.wte.T, theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_chunked_cross_entropy_and_its_gradients() -> None:
    torch.manual_seed(0)
    hidden, wte = torch.randn(37, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (37,))
    chunked = ChunkedCrossEntropy.apply(hidden, wte, targets, 10)
    expected = cross_entropy(hidden @ wte.T, targets)
    torch.testing.assert_close(chunked, expected)
    ours = torch.autograd.grad(3 * chunked, [hidden, wte])
    torch.testing.assert_close(ours, torch.autograd.grad(3 * expected, [hidden, wte]))


def test_muon_moves_every_matrix_orthogonally(model: Pico) -> None:
    before = {name: getattr(model, name).detach().clone() for name in pico_model.MATRICES}
    muon = StackedMuon({name: getattr(model, name) for name in pico_model.MATRICES}, decay=0.0)
    (model(torch.randint(0, SMALL.vocab, (8, SMALL.n_ctx))) ** 3).sum().backward()
    muon.step(lr=0.1)
    for name, old in before.items():
        moved = pico_model._matrices(name, (old - getattr(model, name).detach()) / 0.1)
        scale = max(1.0, moved.shape[2] / moved.shape[1]) ** 0.5
        values = torch.linalg.svdvals(moved) / scale
        assert values.max() < 1.4
        assert values.median() > 0.6


def test_sequences_open_with_the_separator_and_lose_no_token() -> None:
    tokens = np.arange(1, 600, dtype=np.uint16)
    rows = pico_data.sequences(tokens, 0)
    assert rows.shape == (2, 256)
    assert (rows[:, 0] == 0).all()
    np.testing.assert_array_equal(rows[:, 1:].reshape(-1), tokens[:510])


def test_every_epoch_sees_every_sequence_once() -> None:
    counts = dict.fromkeys(pico_data.SHARES, 100)
    order = pico_data.training_order(counts, 1_000, seed=0)
    seen = np.bincount(order, minlength=400).reshape(4, 100)
    np.testing.assert_array_equal(seen.sum(1), [round(1_000 * share) for share in pico_data.SHARES.values()])
    assert (np.ptp(seen, axis=1) <= 1).all()
    np.testing.assert_array_equal(order, pico_data.training_order(counts, 1_000, seed=0))


@pytest.mark.parametrize("n_tokens", [255, 256, 600, 1024])
def test_strided_scoring_scores_every_token_once(n_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(1, 1_000_000, n_tokens)
    monkeypatch.setattr(pico_eval, "token_losses", lambda _, rows: rows[:, 1:].astype(np.float64))
    assert pico_eval.strided_loss(SimpleNamespace(), tokens) == pytest.approx(tokens.mean(), rel=1e-12)
