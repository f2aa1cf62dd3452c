import dataclasses

import pytest
import torch

from sae_sweep.activations.synthetic import frequencies, load_synthetic, true_features
from sae_sweep.config import (
    SYNTHETIC,
    SYNTHETIC_WIDTH,
    ConfigError,
    EmbeddedDataset,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SyntheticDataset,
    TopKConfig,
)
from sae_sweep.text import fingerprint, held_out_sequences, open_text

WORLD = SyntheticDataset(features=60, own=20, active=5.0, noise=0.0)


def config_of(dataset=WORLD, **changes):
    model = ModelConfig(SYNTHETIC, dtype="float32")
    keys = {"model": model, "dataset": dataset, "layer": 0, "architecture": TopKConfig(k=8), "dictionary": 4}
    return RunConfig(**{**keys, **changes})


def lm_of(dataset=WORLD):
    return load_synthetic(config_of(dataset), torch.device("cpu"))


def residuals(dataset, tokens):
    return lm_of(dataset).residuals(tokens, [0])[0]


TOKENS = torch.randint(1, 1024, (40, 128), generator=torch.Generator().manual_seed(0))


def coefficients(dataset, count=4000):
    """How much of each true feature every token has, without noise."""
    x = residuals(dataset, TOKENS).flatten(0, 1)[:count].double()
    truth = true_features(dataset).double()
    return x, truth


def test_residuals_are_sparse_sums_of_the_true_features():
    few = dataclasses.replace(WORLD, features=30, own=0, active=3.0)
    x, truth = coefficients(few)
    found = torch.linalg.lstsq(truth.T, x.T).solution.T  # 30 features in 64 dimensions are independent
    assert torch.allclose(found @ truth, x, atol=1e-5)
    active = found.abs() > 1e-4
    assert active.sum(1).double().mean().item() == pytest.approx(3.0, abs=0.1)
    assert found[active].min() >= 0.5 - 1e-4
    assert found[active].max() <= 1.5 + 1e-4
    assert active.double().mean(0).numpy() == pytest.approx(frequencies(few).numpy(), abs=0.03)


def test_frequencies_fall_with_the_rank_and_sum_to_the_active_features():
    flat, steep = (frequencies(dataclasses.replace(WORLD, zipf=zipf)) for zipf in (0.0, 1.0))
    assert flat.numpy() == pytest.approx([5 / 80] * 80)
    assert steep.sum().item() == pytest.approx(5.0, abs=1e-6)
    assert steep.max() <= 0.5
    own = steep[60:]
    assert own.sum().item() / 5 == pytest.approx(20 / 80, abs=0.05)  # rare and common ones among both


def test_datasets_of_a_world_share_features_and_have_others_of_their_own():
    other = dataclasses.replace(WORLD, variant=1)
    ours, theirs = true_features(WORLD), true_features(other)
    assert torch.equal(ours[:60], theirs[:60])
    assert (ours[60:] @ theirs[60:].T).abs().max() < 0.7
    assert ours.norm(dim=1).numpy() == pytest.approx(1)
    assert ours.mean(1).abs().max() < 1e-6
    elsewhere = true_features(dataclasses.replace(WORLD, world=1))
    assert (ours @ elsewhere.T).abs().max() < 0.7


def test_the_same_place_has_the_same_residual_however_it_is_batched():
    whole = residuals(WORLD, TOKENS)
    parts = torch.cat([residuals(WORLD, part) for part in TOKENS.split(7)])
    assert torch.equal(whole, parts)
    assert torch.equal(residuals(WORLD, TOKENS[:, :50]), whole[:, :50])
    changed = TOKENS.clone()
    changed[:, 30] = 5
    assert torch.equal(residuals(WORLD, changed)[:, :30], whole[:, :30])
    same = torch.isclose(residuals(WORLD, changed)[:, 31], whole[:, 31]).all(1)
    assert same.double().mean() < 0.1  # where the token was the same, or nothing fires


def test_noise_has_the_size_that_is_asked_for():
    noisy = residuals(dataclasses.replace(WORLD, noise=0.5), TOKENS)
    clean = residuals(WORLD, TOKENS)
    added = noisy - clean
    assert (added.std() / clean.square().mean().sqrt()).item() == pytest.approx(0.5, rel=0.05)
    assert added.mean().abs() < 0.01


def test_correlated_features_fire_together_as_often_as_before():
    few = dataclasses.replace(WORLD, features=28, own=0, active=3.0, zipf=0.0)
    together = dataclasses.replace(few, correlation=0.9)
    joint = {}
    for name, dataset in (("apart", few), ("together", together)):
        x, truth = coefficients(dataset)
        active = torch.linalg.lstsq(truth.T, x.T).solution.T.abs() > 1e-4
        assert active.double().mean().item() == pytest.approx(3 / 28, abs=0.01)
        joint[name] = (active[:, 0] & active[:, 1]).double().mean().item()
    assert joint["together"] > 4 * joint["apart"]


def test_its_text_never_repeats_a_document_and_holds_others_out(tmp_path):
    source, lm = open_text(WORLD, tmp_path), lm_of()
    documents = [text for unit in range(20) for text, _ in source.read(unit)]
    assert len(set(documents)) == 20
    assert not set(documents) & {text for text, _ in zip(source.held_out(), range(50), strict=False)}
    tokens = held_out_sequences(source, PackingConfig(), lm.tokenizer, 1000)
    assert tokens.max() < 1024
    assert (tokens[:, 0] == lm.tokenizer.bos_id).all()
    assert list(source.read(3, 1)) == []


def test_a_dataset_is_known_by_what_determines_its_activations(tmp_path):
    ours = fingerprint(WORLD, tmp_path)
    assert fingerprint(dataclasses.replace(WORLD, name="other"), tmp_path) == ours
    for change in ({"noise": 0.2}, {"variant": 3}, {"zipf": 1.0}, {"correlation": 0.1}):
        assert fingerprint(dataclasses.replace(WORLD, **change), tmp_path) != ours


def test_it_goes_with_its_own_model_only():
    with pytest.raises(ConfigError, match="dataset=synthetic is of use with model=synthetic only"):
        config_of(model=ModelConfig("bundled:gpt2-pico"))
    with pytest.raises(ConfigError, match="model=synthetic is of use with dataset=synthetic only"):
        config_of(dataset=EmbeddedDataset())
    with pytest.raises(ConfigError, match="at most half of the 4 features"):
        config_of(dataset=SyntheticDataset(features=4, active=3.0))
    with pytest.raises(ConfigError, match="layer=1: synthetic has layer 0 alone"):
        config_of(layer=1)


def test_what_a_language_model_would_predict_is_left_out():
    lm = lm_of()
    losses = lm.losses(TOKENS[:2], 0, lambda x: x * 0)
    assert losses.std() == 0
    assert true_features(WORLD).shape == (80, SYNTHETIC_WIDTH)
    with pytest.raises(Exception, match="no final norm"):
        lm.unembedding(TOKENS[:2])
