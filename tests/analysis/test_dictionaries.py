from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.analysis.dictionaries import (
    halves,
    nulls,
    random_rows,
    rotated_rows,
    rows_of,
    token_rows,
    usable_rows,
)
from sae_sweep.analysis.neighbours import nearest
from sae_sweep.config import SaeSweepError
from sae_sweep.saes import initial_decoder

NAN, INF = float("nan"), float("inf")


def sae(n=6, d_in=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        W_dec=torch.randn(n, d_in, generator=generator), W_enc=torch.randn(d_in, n, generator=generator)
    )


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_a_row_per_feature_or_neuron_of_either_matrix():
    one = sae()
    torch.testing.assert_close(rows_of(one).unit, unit(one.W_dec))
    torch.testing.assert_close(rows_of(one, "encoder").unit, unit(one.W_enc.T))
    torch.testing.assert_close(rows_of(one, "decoder", "neurons").unit, unit(one.W_dec.T))
    torch.testing.assert_close(rows_of(one, "encoder", "neurons").unit, unit(one.W_enc))
    assert rows_of(one, side="neurons").kept.n == 4


def test_a_cosine_of_both_is_the_mean_of_the_two():
    a, b = rows_of(sae(seed=0), "both").unit, rows_of(sae(seed=1), "both").unit
    means = (rows_of(sae(seed=0)).unit @ rows_of(sae(seed=1)).unit.T) / 2
    means += (rows_of(sae(seed=0), "encoder").unit @ rows_of(sae(seed=1), "encoder").unit.T) / 2
    torch.testing.assert_close(a @ b.T, means)
    decoder, encoder = halves(a)
    torch.testing.assert_close(decoder, rows_of(sae()).unit)
    torch.testing.assert_close(encoder, rows_of(sae(), "encoder").unit)


def test_rows_that_cannot_be_matched_are_left_out_and_counted_once():
    one = sae(8)
    one.W_dec[1] = 0
    one.W_dec[2, 3], one.W_dec[3, 0] = NAN, -INF
    one.W_enc[:, 4] = one.W_enc[:, 2] = 0
    densities = torch.tensor([0.1, 0.1, 0.1, 0.0, 0.1, 0.0, NAN, 0.2])
    decoder = rows_of(one, densities=densities).kept
    assert (decoder.ids.tolist(), decoder.n) == ([0, 4, 7], 8)
    assert (decoder.zero, decoder.not_finite, decoder.dead) == (1, 2, 2)
    assert decoder.left_out == "1 all zero, 2 NaN or inf, 2 dead"
    both = rows_of(one, "both").kept
    assert (both.ids.tolist(), both.zero, both.not_finite, both.dead) == ([0, 5, 6, 7], 2, 2, 0)
    assert rows_of(sae()).kept.left_out == ""
    assert rows_of(one, "both").unit.isfinite().all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([0.0, 1.0, -2.0, 1e-38, 1e38, NAN, INF]), min_size=6, max_size=24))
def test_what_is_kept_has_length_one_and_what_is_not_is_counted(entries):
    rows = torch.tensor(entries[: len(entries) // 3 * 3]).view(-1, 3)
    found = usable_rows([rows])
    kept = found.kept
    assert len(kept.ids) + kept.zero + kept.not_finite + kept.dead == kept.n == len(rows)
    torch.testing.assert_close(found.unit.norm(dim=1), torch.ones(len(kept.ids)))
    for row, one in enumerate(rows):
        assert (row in kept.ids.tolist()) == bool(one.isfinite().all() and (one != 0).any())


def test_weights_in_half_precision_are_matched_in_single():
    one = sae()
    half = SimpleNamespace(W_dec=one.W_dec.bfloat16().requires_grad_(), W_enc=one.W_enc.bfloat16())
    assert rows_of(half).unit.dtype == torch.float32
    assert not rows_of(half, "both").unit.requires_grad


@pytest.mark.parametrize("matrix", ["decoder", "encoder", "both"])
def test_refuses_what_does_not_fit(matrix):
    with pytest.raises(SaeSweepError, match=r"densities have shape \(5,\), and there are 6 features"):
        rows_of(sae(), matrix, densities=torch.ones(5))
    with pytest.raises(SaeSweepError, match="densities belong to features"):
        rows_of(sae(), matrix, "neurons", torch.ones(6))
    with pytest.raises(SaeSweepError, match="do not fit"):
        rows_of(SimpleNamespace(W_dec=torch.ones(3, 2), W_enc=torch.ones(3, 2)), "both")


def test_random_rows_lie_at_the_published_null():
    """definitions.md 2.5: unit Gaussian rows, d = 768, F = 3072: mean top-1 .128."""
    found = nearest(random_rows(3072, 768, 0), random_rows(1000, 768, 1))
    assert found.mmcs_b_to_a == pytest.approx(0.128, abs=0.002)


def test_a_rotation_keeps_the_dictionary_and_forgets_its_directions():
    rows = random_rows(60, 8, 0)
    turned = rotated_rows(rows, 1)
    torch.testing.assert_close(turned @ turned.T, rows @ rows.T)
    assert torch.equal(turned, rotated_rows(rows, 1))
    assert not torch.equal(turned, rotated_rows(rows, 2))
    assert (turned * rows).sum(1).abs().mean() < 0.9
    torch.testing.assert_close(rotated_rows(-rows, 1), -turned)
    signs = torch.stack([rotated_rows(torch.eye(3), seed).sign() for seed in range(200)]).mean(0)
    assert signs.abs().max() < 0.25  # no entry prefers a sign


def test_token_rows_are_residuals_of_different_tokens():
    residuals = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    residuals[3], residuals[7, 2] = 0, NAN
    rows = token_rows(residuals, 18, 0)
    usable = residuals[[i for i in range(20) if i not in (3, 7)]]
    torch.testing.assert_close(rows[rows[:, 0].argsort()], unit(usable)[unit(usable)[:, 0].argsort()])
    with pytest.raises(SaeSweepError, match="a null of 19 rows needs as many tokens, and there are 18"):
        token_rows(residuals, 19, 0)


def test_nulls_have_the_shape_of_the_dictionary_and_come_by_name():
    rows = random_rows(12, 4, 0)
    made = nulls(rows, 0, residuals=torch.randn(30, 4), initial=3 * initial_decoder(4, 12, 5))
    assert list(made) == ["random", "rotated", "tokens", "initial"]
    for make in made.values():
        assert make().shape == rows.shape
        torch.testing.assert_close(make().norm(dim=1), torch.ones(12))
    assert list(nulls(rows, 0)) == ["random", "rotated"]
    torch.testing.assert_close(made["initial"](), initial_decoder(4, 12, 5))
