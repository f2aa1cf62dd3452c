"""SAEs in SAELens's own files: the same features and reconstructions as SAELens's formulas give."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from sae_sweep.config import SaeSweepError
from sae_sweep.saes import load_sae, open_sae, save_sae
from tests.saes.helpers import architecture, fresh_sae, sparse_batch

D_IN, D_SAE = 12, 20
X = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(9)) * 3 + 1
KINDS = ("standard", "topk", "jumprelu", "gated")


def tensors(kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(kind))

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    found = {"W_enc": draw(D_IN, D_SAE), "W_dec": draw(D_SAE, D_IN), "b_dec": draw(D_IN)}
    names = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}.get(kind, ("b_enc",))
    return found | {name: draw(D_SAE) / 2 for name in names}


def write(folder, kind, weights=None, **keys):
    """Files as SAELens 6 writes them."""
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cuda",
        "architecture": kind,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2"},
        **({"k": 3, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        **keys,
    }
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value != "no"}))
    save_file(weights or tensors(kind), folder / "sae_weights.safetensors")
    return folder


def latents(kind, w, xn, *, subtract=True, norms=None):
    """SAELens's `encode`, step by step."""
    x = xn - w["b_dec"] * subtract
    if kind == "gated":
        magnitude = (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        return magnitude * (x @ w["W_enc"] + w["b_gate"] > 0)
    z = x @ w["W_enc"] + w["b_enc"]
    if kind == "topk":
        z = z if norms is None else z * norms
        values, where = z.topk(3)
        return torch.zeros_like(z).scatter(-1, where, values.relu())
    return z.relu() * (z > w["threshold"]) if kind == "jumprelu" else z.relu()


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_reconstruction_are_those_of_saelens(tmp_path, kind, subtract):
    sae = load_sae(write(tmp_path / "sae", kind, apply_b_dec_to_input=subtract))
    w = tensors(kind)
    f = latents(kind, w, X, subtract=subtract)
    assert (f > 0).any()
    assert (f == 0).any()
    torch.testing.assert_close(sae.encode(X), f)
    reconstruction = f @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(sae.decode(f), reconstruction)
    torch.testing.assert_close(sae(X), reconstruction)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    assert torch.equal(load_sae(tmp_path).W_dec, w["W_dec"])


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_a_normalisation_is_undone_by_one_call_and_decode_says_which(tmp_path, how):
    sae = load_sae(write(tmp_path / "sae", "standard", normalize_activations=how))
    w = tensors("standard")
    if how == "layer_norm":
        mean, std = X.mean(-1, keepdim=True), X.std(-1, keepdim=True)
        xn, shift, scale = (X - mean) / (std + 1e-5), mean, std
    else:
        scale = X.norm(dim=-1, keepdim=True) / D_IN**0.5
        xn, shift = X / scale, 0
    f = latents("standard", w, xn)
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae(X), (f @ w["W_dec"] + w["b_dec"]) * scale + shift)
    torch.testing.assert_close(sae.decode(f, sae.normalise(X)), sae(X))
    with pytest.raises(SaeSweepError, match=rf"normalises each token \({how}\).*sae\(x\) reconstructs x"):
        sae.decode(f)


def test_our_own_sae_says_how_to_reconstruct():
    sae = fresh_sae(architecture("topk"), "modern")
    x = sparse_batch(0)
    with pytest.raises(SaeSweepError, match=r"sae\(x\) reconstructs x, sae.decode\(f, sae.normalise\(x\)\)"):
        sae.decode(sae.encode(x))
    assert torch.equal(sae.decode(sae.encode(x), sae.normalise(x)), sae(x))


def test_decoder_norms_and_finetuned_scales_are_folded(tmp_path):
    w = tensors("topk")
    norms = w["W_dec"].norm(dim=1)
    sae = load_sae(write(tmp_path / "a", "topk", rescale_acts_by_decoder_norm=True))
    f = latents("topk", w, X, norms=norms)
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae.decode(f), (f / norms) @ w["W_dec"] + w["b_dec"])
    w = tensors("standard")
    scale = torch.rand(D_SAE) + 0.5
    old = {"finetuning_scaling_factor": True, "metadata": "no"}
    sae = load_sae(write(tmp_path / "b", "standard", {**w, "scaling_factor": scale}, **old))
    f = latents("standard", w, X)
    torch.testing.assert_close(sae.decode(f), (f * scale) @ w["W_dec"] + w["b_dec"])


def test_a_feature_that_decodes_to_nothing_is_no_nan(tmp_path):
    w = tensors("topk")
    w["W_dec"][2] = 0
    sae = load_sae(write(tmp_path, "topk", w, rescale_acts_by_decoder_norm=True))
    assert sae.W_dec.isfinite().all()
    assert sae(X).isfinite().all()


def test_files_before_version_6(tmp_path):
    old = {"metadata": "no", "architecture": "no", "normalize_activations": False}
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "k": "no"}
    torch.testing.assert_close(
        load_sae(write(tmp_path / "a", "standard", **old)).encode(X),
        latents("standard", tensors("standard"), X),
    )
    torch.testing.assert_close(
        load_sae(write(tmp_path / "b", "topk", **old, **topk)).encode(X), latents("topk", tensors("topk"), X)
    )


def test_half_precision_becomes_float32_and_scaled_inputs_are_said(tmp_path, caplog):
    weights = tensors("jumprelu", torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        sae = load_sae(
            write(tmp_path / "sae", "jumprelu", weights, normalize_activations="expected_average_only_in")
        )
    assert sae.W_dec.dtype == torch.float32
    assert "average norm of sqrt(d_in)" in caplog.text
    f = sae.encode(X)
    assert torch.equal(sae.decode(f), sae(X))


@pytest.mark.parametrize(
    ("kind", "keys", "why"),
    [
        ("standard", {"architecture": "temporal"}, "architecture='temporal' is none of standard, topk"),
        ("standard", {"d_sae": "many"}, "d_in and d_sae are"),
        ("standard", {"d_in": 13}, "W_enc, W_dec, b_dec do not fit d_in=13"),
        ("standard", {"d_in": "no"}, "d_in is missing"),
        ("jumprelu", {"architecture": "standard"}, "threshold are no tensors of architecture=standard"),
        ("standard", {"architecture": "jumprelu"}, "threshold do not fit"),
        ("topk", {"k": 21}, "k=21 is no number of features of 20"),
        ("topk", {"k": None}, "k=None"),
        (
            "topk",
            {"rescale_acts_by_decoder_norm": "no way"},
            "rescale_acts_by_decoder_norm='no way' is neither",
        ),
        ("standard", {"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input='false' is neither true nor"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "normalize_activations='cov"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, kind, keys, why):
    with pytest.raises(SaeSweepError) as caught:
        load_sae(write(tmp_path / "sae", kind, **keys))
    assert str(caught.value).startswith(f"{tmp_path / 'sae'} holds no SAE that can be read: {why}")
    assert "\n" not in str(caught.value)


def test_a_scale_of_another_shape_is_one_line(tmp_path):
    weights = tensors("standard") | {"scaling_factor": torch.ones(3)}
    with pytest.raises(
        SaeSweepError, match=r"holds no SAE that can be read: scaling_factor has the shape \[3\]"
    ):
        load_sae(write(tmp_path / "sae", "standard", weights, finetuning_scaling_factor=True))


@pytest.mark.parametrize("metadata", ["no", {}])
def test_an_sae_of_centred_residuals_subtracts_their_mean(tmp_path, metadata):
    centring = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    keys = centring if metadata == "no" else {"metadata": centring}  # before version 6, and since
    sae = load_sae(write(tmp_path / "sae", "standard", **{"metadata": "no"} | keys))
    mean = X.mean(-1, keepdim=True)
    f = latents("standard", tensors("standard"), X - mean)
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae(X), f @ sae.W_dec + sae.b_dec + mean)
    with pytest.raises(SaeSweepError, match=r"normalises each token \(centred\)"):
        sae.decode(f)


@pytest.mark.parametrize(
    ("keys", "layer"),
    [
        ({"metadata": {"hook_name": "blocks.8.hook_resid_pre"}}, 8),
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, 8),
        ({"metadata": "no", "hook_point": "blocks.8.hook_resid_pre"}, 8),
        ({"metadata": "no", "hook_name": "blocks.8.hook_resid_pre"}, 8),
        ({"metadata": {}}, None),
        ({"metadata": "no"}, None),
    ],
)
def test_what_it_reads(tmp_path, keys, layer):
    _, origin = open_sae(str(write(tmp_path / "sae", "standard", **keys)))
    assert (origin.layout, origin.layer) == ("SAELens", layer)


def test_other_activations_are_refused_where_a_text_is_read(tmp_path):
    folder = write(tmp_path / "sae", "standard", metadata={"hook_name": "blocks.8.hook_mlp_out"})
    load_sae(folder)
    with pytest.raises(SaeSweepError, match=r"this SAE of SAELens reads 'blocks\.8\.hook_mlp_out'; only the"):
        open_sae(str(folder))


def test_nan_is_refused(tmp_path):
    weights = tensors("standard")
    weights["b_enc"][3] = torch.nan
    with pytest.raises(SaeSweepError, match="b_enc hold NaN or inf"):
        load_sae(write(tmp_path / "sae", "standard", weights))


def test_it_is_never_taken_for_a_run_of_a_sweep(tmp_path):
    folder = write(tmp_path / "sae", "standard")
    with pytest.raises(SaeSweepError, match="does not describe an SAE of this version"):
        load_sae(folder, "a" * 12)
    with pytest.raises(SaeSweepError, match="an SAE of another library is not written again"):
        save_sae(load_sae(folder), tmp_path / "copy", metadata={})


def test_an_sae_of_ours_without_our_metadata_computes_the_same(tmp_path):
    sae = fresh_sae(architecture("jumprelu"), "modern")
    save_sae(sae, tmp_path / "sae", metadata={})
    file = tmp_path / "sae" / "cfg.json"
    cfg = json.loads(file.read_text())
    del cfg["metadata"]["sae_sweep"]
    file.write_text(json.dumps(cfg))
    x = sparse_batch(0)
    torch.testing.assert_close(load_sae(tmp_path)(x), sae(x))
