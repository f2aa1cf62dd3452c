"""The files of an SAE: round trips bit for bit, and errors that say what is wrong."""

import json
import os
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sae_sweep.config import SaeSweepError
from sae_sweep.saes import load_sae, save_sae
from tests.disks import fill_up
from tests.saes.helpers import D_IN, D_SAE, KINDS, NUMERICS, architecture, fresh_sae, learner, sparse_batch


@settings(max_examples=24, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(NUMERICS), st.integers(0, 4))
def test_round_trip(tmp_path_factory, kind, numerics, steps):
    folder = tmp_path_factory.mktemp("run") / "sae"
    one = learner(kind, numerics)
    for step in range(steps):
        one.step(sparse_batch(step))
    save_sae(one.sae, folder, metadata={"model_name": "gpt2"})
    for path in (folder, folder.parent, str(folder)):
        back = load_sae(path)
        assert type(back) is type(one.sae)
        assert (back.architecture, back.numerics) == (one.sae.architecture, numerics)
        ours, theirs = one.sae.state_dict(), back.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = sparse_batch(99)
    assert torch.equal(back(x), one.sae(x))


def test_the_files_follow_saelens(tmp_path):
    one = learner("batchtopk", "study")
    one.step(sparse_batch(0))
    save_sae(one.sae, tmp_path / "sae", metadata={"hook_name": "blocks.8.hook_resid_pre"})
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["architecture"] == "jumprelu"
    assert cfg["normalize_activations"] == "layer_norm"
    assert cfg["apply_b_dec_to_input"] is True
    assert cfg["metadata"]["hook_name"] == "blocks.8.hook_resid_pre"
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    vectors = {"b_enc": (D_SAE,), "b_dec": (D_IN,), "threshold": (D_SAE,)}
    expected = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), **vectors}
    assert {name: tuple(w.shape) for name, w in weights.items()} == expected
    assert not weights["b_enc"].any()
    assert (weights["threshold"] == one.sae.threshold).all()


def saved(tmp_path):
    save_sae(fresh_sae(architecture("topk"), "modern"), tmp_path / "sae", metadata={})
    return tmp_path / "sae" / "cfg.json", tmp_path / "sae" / "sae_weights.safetensors"


def test_saving_again_replaces(tmp_path):
    saved(tmp_path)
    newer = fresh_sae(architecture("topk"), "modern", seed=8)
    save_sae(newer, tmp_path / "sae", metadata={})
    assert torch.equal(load_sae(tmp_path).W_enc, newer.W_enc)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


def test_a_full_disk_is_one_line_and_leaves_the_earlier_sae(small_disk):
    saved(small_disk / "run")
    before = load_sae(small_disk / "run").W_enc
    newer = fresh_sae(architecture("topk"), "modern", seed=8)
    for left in (0, 4096):  # not even cfg.json fits; the weights do not
        fill_up(small_disk, left)
        with pytest.raises(SaeSweepError, match=r"^no disk space left to write .*sae: free some"):
            save_sae(newer, small_disk / "run" / "sae", metadata={"note": "a" * 3000})
        assert torch.equal(load_sae(small_disk / "run").W_enc, before)
        assert [path.name for path in (small_disk / "run").iterdir()] == ["sae"]
    fill_up(small_disk, 2**18)
    save_sae(newer, small_disk / "run" / "sae", metadata={})
    assert torch.equal(load_sae(small_disk / "run").W_enc, newer.W_enc)


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_the_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        files = saved(tmp_path)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o666 & ~mask] * 2


def test_no_sae_here(tmp_path):
    with pytest.raises(SaeSweepError, match=r"no SAE in .*cfg\.json"):
        load_sae(tmp_path)


def test_missing_weights(tmp_path):
    saved(tmp_path)[1].unlink()
    with pytest.raises(SaeSweepError, match=r"cannot read .*sae_weights\.safetensors"):
        load_sae(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights(tmp_path, keep):
    weights = saved(tmp_path)[1]
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(SaeSweepError, match=r"cannot read .*sae_weights\.safetensors"):
        load_sae(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_broken_config(tmp_path, text):
    saved(tmp_path)[0].write_text(text, encoding="latin-1")
    with pytest.raises(SaeSweepError, match=r"cannot read .*cfg\.json"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cfg: cfg["metadata"].pop("sae_sweep"),
        lambda cfg: cfg.pop("d_in"),
        lambda cfg: cfg["metadata"]["sae_sweep"]["architecture"].update(kind="gated"),
        lambda cfg: cfg["metadata"]["sae_sweep"]["architecture"].update(newer_key=1),
        lambda cfg: cfg["metadata"]["sae_sweep"].update(numerics="other"),
        lambda cfg: cfg.update(d_sae="many"),
    ],
)
def test_foreign_config(tmp_path, damage):
    file = saved(tmp_path)[0]
    cfg = json.loads(file.read_text())
    damage(cfg)
    file.write_text(json.dumps(cfg))
    with pytest.raises(SaeSweepError, match=r"cfg\.json does not describe an SAE"):
        load_sae(tmp_path)


def test_config_that_is_a_list(tmp_path):
    saved(tmp_path)[0].write_text("[]")
    with pytest.raises(SaeSweepError, match=r"does not describe an SAE"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    "damage", [{"W_enc": torch.zeros(3, 3)}, {"W_dec": None}, {"surprise": torch.zeros(1)}]
)
def test_weights_of_something_else(tmp_path, damage):
    file = saved(tmp_path)[1]
    weights = {**load_file(file), **damage}
    save_file({name: value for name, value in weights.items() if value is not None}, file)
    with pytest.raises(SaeSweepError, match=rf"{next(iter(damage))} do not fit"):
        load_sae(tmp_path)
