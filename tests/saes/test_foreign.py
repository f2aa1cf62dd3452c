"""SAEs of sparsify, dictionary_learning and the study: read as they compute there, or refused in one line."""

import functools
import json
import logging
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from sae_sweep.config import SaeSweepError
from sae_sweep.saes import load_sae, save_sae
from tests.saes.foreign_files import (
    ALL,
    D_IN,
    D_SAE,
    DICTIONARIES,
    DICTIONARY,
    SPARSIFY,
    STUDY,
    STUDY_TYPES,
    K,
    dictionary_answer,
    dictionary_folder,
    dictionary_state,
    inputs,
    refused,
    sparsify_answer,
    sparsify_folder,
    study_answer,
    study_folder,
    study_state,
)

X = inputs()


def gives(sae, answer):
    f, reconstruction = answer
    assert 0.02 < (f > 0).float().mean() < 0.9
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae(X), reconstruction)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(tmp_path, activation):
    state = sparsify_folder(tmp_path, activation=activation)
    gives(load_sae(tmp_path), sparsify_answer(state, X, activation))


@pytest.mark.parametrize("keys", [{"num_latents": D_SAE, "expansion_factor": 99}, {"signed": False}])
def test_sparsify_says_its_width_in_two_ways_and_its_older_files_are_read(tmp_path, keys):
    state = sparsify_folder(tmp_path, **keys)
    gives(load_sae(tmp_path), sparsify_answer(state, X))


def test_sparsify_in_half_precision(tmp_path):
    state = sparsify_folder(tmp_path)
    half = {name: value.half() for name, value in state.items()}
    sparsify_folder(tmp_path, weights=half)
    gives(load_sae(tmp_path), sparsify_answer({name: value.float() for name, value in half.items()}, X))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(tmp_path, name, unit):
    state = dictionary_state(name, unit=unit)
    dictionary_folder(tmp_path, name, state=state)
    gives(load_sae(tmp_path), dictionary_answer(name, state, X))


def test_a_feature_that_decodes_to_nothing_is_no_nan(tmp_path):
    state = dictionary_state("AutoEncoder")
    state["decoder.weight"][:, 4] = 0
    dictionary_folder(tmp_path, "AutoEncoder", state=state)
    assert load_sae(tmp_path)(X).isfinite().all()


def test_k_stands_in_the_weights_in_the_config_or_in_both(tmp_path):
    state = dictionary_state("AutoEncoderTopK")
    answer = dictionary_answer("AutoEncoderTopK", state, X)
    older = {name: value for name, value in state.items() if name not in ("k", "threshold")}
    dictionary_folder(tmp_path / "a", "AutoEncoderTopK", state=older)
    dictionary_folder(tmp_path / "b", "AutoEncoderTopK", trainer={"k": "no"})
    gives(load_sae(tmp_path / "a"), answer)
    gives(load_sae(tmp_path / "b"), answer)
    dictionary_folder(tmp_path / "c", "AutoEncoderTopK", trainer={"k": K + 1})
    assert "k is 3 in its weights and 4 in its config" in refused(tmp_path / "c")


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("kind", STUDY_TYPES)
def test_the_study(tmp_path, kind, unit_norm):
    study_folder(tmp_path, kind, input_unit_norm=unit_norm)
    gives(load_sae(tmp_path), study_answer(kind, study_state(kind), X, unit_norm=unit_norm))


def test_the_studys_batchtopk_is_said_to_depend_on_the_batch(tmp_path, caplog):
    study_folder(tmp_path, "batchtopk")
    with caplog.at_level(logging.WARNING):
        sae = load_sae(tmp_path)
    assert "depend on its neighbours'" in caplog.text
    assert (sae.encode(X) > 0).sum() == K * len(X)
    assert not torch.equal(sae.encode(X[:5]), sae.encode(X)[:5])
    assert sae.encode(X.view(4, 10, D_IN)).shape == (4, 10, D_SAE)


def test_the_older_file_format_of_torch_is_read(tmp_path):
    study_folder(tmp_path, "topk")
    torch.save(study_state("topk"), tmp_path / "sae.pt", _use_new_zipfile_serialization=False)
    gives(load_sae(tmp_path), study_answer("topk", study_state("topk"), X))


@pytest.mark.parametrize(("config", "weights", "write"), ALL)
def test_damage_of_any_layout_is_one_line(tmp_path, config, weights, write):
    write(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (config, weights)}
    load_sae(tmp_path)
    for name in (config, weights):
        cuts = [b"", b"\x80", b"PK\x03\x04", whole[name][: len(whole[name]) // 2], whole[name][:-1], b"[]"]
        for damaged in [*cuts, b"[" * 100_000, os.urandom(200)]:
            (tmp_path / name).write_bytes(damaged)
            refused(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        refused(tmp_path)
        (tmp_path / name).rmdir()
        (tmp_path / name).write_bytes(whole[name])
    load_sae(tmp_path)


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "16", True, [16], 10**400, {"a": 1}])
@pytest.mark.parametrize(
    ("write", "file", "keys"),
    [
        (SPARSIFY, "cfg.json", ("d_in",)),
        (SPARSIFY, "cfg.json", ("k",)),
        (SPARSIFY, "cfg.json", ("expansion_factor",)),
        (DICTIONARY, "config.json", ("trainer",)),
        (DICTIONARY, "config.json", ("trainer", "k")),
        (DICTIONARY, "config.json", ("trainer", "dict_size")),
        (DICTIONARY, "config.json", ("trainer", "activation_dim")),
        (DICTIONARY, "config.json", ("trainer", "dict_class")),
        (STUDY, "config.json", ("top_k",)),
        (STUDY, "config.json", ("act_size",)),
        (STUDY, "config.json", ("dict_size",)),
        (STUDY, "config.json", ("sae_type",)),
    ],
)
def test_an_absurd_value_is_one_line(tmp_path, write, file, keys, value):
    write(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    functools.reduce(lambda place, key: place[key], keys[:-1], content)[keys[-1]] = value
    (tmp_path / file).write_text(json.dumps(content))
    assert "holds no SAE that can be read" in refused(tmp_path)


@pytest.mark.parametrize(
    ("write", "keys", "why"),
    [
        (sparsify_folder, {"transcode": True}, "it is a transcoder"),
        (sparsify_folder, {"skip_connection": True}, "it is one with a linear skip connection"),
        (sparsify_folder, {"signed": True}, "it is one with signed latents"),
        (sparsify_folder, {"activation": "relu"}, "activation='relu' is none of topk, groupmax"),
        (sparsify_folder, {"k": D_SAE + 1}, "k=25 is no number of features of 24"),
        (sparsify_folder, {"activation": "groupmax", "k": 5}, "24 features are no 5 equal groups"),
        (sparsify_folder, {"num_latents": 30}, "W_enc, W_dec, b_enc do not fit d_in=12 and d_sae=30"),
        (
            DICTIONARY,
            {"trainer": {"dict_class": "IdentityDict"}},
            "dict_class='IdentityDict' is none of",
        ),
        (
            DICTIONARY,
            {"trainer": {"dict_class": "GatedAutoEncoder"}},
            "decoder_bias, gate_bias, mag_bias, r_mag",
        ),
        (DICTIONARY, {"trainer": {"activation_dim": 13}}, "W_enc, W_dec, b_dec do not fit d_in=13"),
        (
            DICTIONARY,
            {"trainer": {"layer": 6}},
            "layer=6 and submodule_name='resid_post_layer_7' name different",
        ),
        (STUDY, {"sae_type": "nnet"}, "sae_type='nnet' is none of vanilla, topk, batchtopk, jumprelu"),
        (STUDY, {"sae_type": "jumprelu"}, "jumprelu.log_threshold are missing"),
        (STUDY, {"input_unit_norm": "False"}, "input_unit_norm='False' is neither true nor false"),
        (STUDY, {"act_size": "no"}, "act_size is missing"),
    ],
)
def test_what_is_no_such_sae_says_why(tmp_path, write, keys, why):
    write(tmp_path, **keys)
    assert refused(tmp_path).startswith(f"{tmp_path} holds no SAE that can be read: {why}")


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self._file = str(file)

    def __reduce__(self):
        return open, (self._file, "w")


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_file_is_never_run(tmp_path, legacy):
    made = tmp_path / "made"
    for name, write in (("ae.pt", DICTIONARY), ("sae.pt", STUDY)):
        folder = tmp_path / name
        write(folder, state={"W_enc": torch.zeros(2, 2), "other": Harmful(made)})
        if legacy:
            (folder / name).write_bytes(pickle.dumps({"W_enc": Harmful(made)}))
        assert "holds more than tensors" in refused(folder)
        assert not made.exists()


@pytest.mark.parametrize(
    "state",
    [
        [torch.zeros(2)],
        torch.zeros(3),
        {"W_enc": 3},
        {1: torch.zeros(2)},
        {"W_enc": torch.zeros(1).expand(10**12)},
        {"W_enc": torch.zeros(3, 3).to_sparse()},
        {"W_enc": torch.zeros(2, device="meta")},
    ],
)
def test_a_file_of_other_things_is_one_line(tmp_path, state):
    study_folder(tmp_path, "topk", state=state)
    assert "sae.pt holds no state_dict of plain tensors" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("W_dec", torch.zeros(3, 3), "W_dec do not fit"),
        ("W_enc", torch.zeros(3), "W_enc are no matrices"),
        ("W_dec", torch.zeros(3, 3, 3), "W_dec are no matrices"),
        ("b_dec", torch.full((D_IN,), torch.nan), "b_dec hold NaN or inf"),
        ("W_extra", torch.zeros(3), "W_extra are no tensors of this architecture"),
        ("b_dec", None, "b_dec are missing"),
    ],
)
def test_tensors_of_something_else_are_named(tmp_path, name, value, why):
    state = study_state("topk") | {name: value}
    study_folder(tmp_path, "topk", state={key: one for key, one in state.items() if one is not None})
    assert why in refused(tmp_path)


def test_they_are_not_written_again(tmp_path):
    study_folder(tmp_path, "topk")
    with pytest.raises(SaeSweepError, match="an SAE of another library is not written again"):
        save_sae(load_sae(tmp_path), tmp_path / "new", metadata={})
    assert not (tmp_path / "new").exists()


def test_the_weights_are_those_of_the_file(tmp_path):
    sparsify_folder(tmp_path)
    loaded = load_file(tmp_path / "sae.safetensors")
    assert torch.equal(load_sae(tmp_path).W_dec, loaded["W_dec"])
    assert load_sae(tmp_path).W_dec.requires_grad


@pytest.mark.parametrize("odd", [torch.zeros(()), torch.zeros(3), torch.zeros(3, 3, 3)])
@pytest.mark.parametrize("name", ["AutoEncoderTopK", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_weights_of_another_shape_are_one_line_in_every_class(tmp_path, name, odd):
    state = dictionary_state(name)
    for key in state.keys() - {"k", "group_sizes", "threshold"}:
        dictionary_folder(tmp_path, name, state=state | {key: odd})
        assert "holds no SAE that can be read" in refused(tmp_path)
    if name == "JumpReluAutoEncoder":
        dictionary_folder(tmp_path, name, state=state | {"threshold": odd})
        assert odd.ndim == 0 or "threshold do not fit" in refused(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_one_line(tmp_path, dtype):
    study_folder(tmp_path, "topk", state=study_state("topk") | {"b_dec": torch.ones(D_IN, dtype=dtype)})
    assert f"b_dec hold {dtype}, not floating-point numbers" in refused(tmp_path)


def test_weights_in_eight_bits_are_read(tmp_path):
    state = {name: value.to(torch.float8_e4m3fn) for name, value in study_state("topk").items()}
    study_folder(tmp_path, "topk", state=state)
    gives(load_sae(tmp_path), study_answer("topk", {name: value.float() for name, value in state.items()}, X))


def test_decoder_rows_too_large_for_float32_are_one_line(tmp_path):
    state = dictionary_state("AutoEncoder")
    state["decoder.weight"][:, 4] = 1e30
    dictionary_folder(tmp_path, "AutoEncoder", state=state)
    assert "W_enc, b_enc hold NaN or inf" in refused(tmp_path)


def test_what_a_config_holds_is_escaped_in_a_message(tmp_path):
    DICTIONARY(tmp_path, trainer={"k": "\n\x1b[31m"})
    assert r"'\n\x1b[31m' in its config" in refused(tmp_path)
