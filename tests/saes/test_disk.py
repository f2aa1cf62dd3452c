"""The files of an SAE: round trips bit for bit, and errors that say what is wrong."""

import json
import math
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
    with pytest.raises(SaeSweepError, match=r"no SAE in .*sae: it holds cfg\.json; known are cfg\.json with"):
        load_sae(tmp_path)
    with pytest.raises(SaeSweepError, match=r"cannot read .*sae_weights\.safetensors"):
        load_sae(tmp_path, "a" * 12)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights(tmp_path, keep):
    weights = saved(tmp_path)[1]
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(SaeSweepError, match=r"cannot read .*sae_weights\.safetensors"):
        load_sae(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_broken_config(tmp_path, text):
    saved(tmp_path)[0].write_text(text, encoding="latin-1")
    with pytest.raises(SaeSweepError, match=r"cannot read .*cfg\.json"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
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


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path):
    file = saved(tmp_path)[1]
    whole = file.read_bytes()
    for place in range(0, len(whole), 29):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(SaeSweepError, match=r"sae_weights\.safetensors"):
            load_sae(tmp_path)


def edited(file, *keys, value=None):
    """Set a value of a JSON file, or delete its key."""
    content = json.loads(file.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    file.write_text(json.dumps(content))


OURS = ("metadata", "sae_sweep")


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("value", [0, -1, 1.5, 10**12, 10**400, math.nan, math.inf, "16", True, [16], None])
@pytest.mark.parametrize("key", [("d_in",), ("d_sae",), ("k",), (*OURS, "architecture", "k")])
def test_a_missing_or_absurd_size_is_refused_before_memory_is_taken(tmp_path, checksum, value, key):
    file = saved(tmp_path)[0]
    if not checksum:
        edited(file, *OURS, "checksum")
    edited(file, *key, value=value)
    with pytest.raises(SaeSweepError, match=r"cfg\.json( does not describe an SAE|: it holds)"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((*OURS, "architecture", "aux_coefficient"), None),
        ((*OURS, "architecture", "aux_coefficient"), "0.1"),
        ((*OURS, "architecture", "aux_coefficient"), math.nan),
        ((*OURS, "architecture"), ["topk"]),
        ((*OURS, "architecture", "kind"), ["topk"]),
        ((*OURS, "numerics"), {}),
        ((*OURS, "surprise"), 1),
        (("dtype",), "bfloat16"),
        (("apply_b_dec_to_input",), False),
        (("normalize_activations",), "none"),
        (("surprise",), 1),
    ],
)
def test_a_config_of_another_sae_is_refused(tmp_path, key, value):
    file = saved(tmp_path)[0]
    edited(file, *OURS, "checksum")
    edited(file, *key, value=value)
    with pytest.raises(SaeSweepError, match=r"cfg\.json( does not describe an SAE|: it holds)"):
        load_sae(tmp_path)


def test_a_believable_value_that_was_not_written_is_noticed(tmp_path):
    file = saved(tmp_path)[0]
    edited(file, *OURS, "architecture", "aux_coefficient", value=0.5)
    with pytest.raises(SaeSweepError, match=r"is damaged: it and cfg\.json do not fit their checksum"):
        load_sae(tmp_path)


def test_other_metadata_may_change_and_older_files_have_no_checksum(tmp_path):
    file = saved(tmp_path)[0]
    before = load_sae(tmp_path).state_dict()
    edited(file, "metadata", "model_name", value="a label")
    edited(file, "device", value="cuda")
    load_sae(tmp_path)
    edited(file, *OURS, "checksum")
    after = load_sae(tmp_path).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_are_neither_written_nor_read(tmp_path, value):
    config, file = saved(tmp_path)
    weights = load_file(file)
    weights["W_dec"][1, 2] = value
    save_file(weights, file)
    edited(config, *OURS, "checksum")
    with pytest.raises(SaeSweepError, match=r"is damaged: W_dec holds NaN or inf"):
        load_sae(tmp_path)
    sae = fresh_sae(architecture("topk"), "modern")
    sae.W_dec.data[1, 2] = value
    with pytest.raises(SaeSweepError, match="W_dec of the SAE holds NaN or inf"):
        save_sae(sae, tmp_path / "other", metadata={})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32, torch.float64])
def test_another_dtype_is_refused(tmp_path, dtype):
    file = saved(tmp_path)[1]
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
    with pytest.raises(SaeSweepError, match=r"W_dec, W_enc, b_dec, b_enc do not fit"):
        load_sae(tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("batchtopk", "threshold"), ("topk", "b_enc")])
def test_values_that_loading_would_drop_are_refused(tmp_path, kind, name):
    save_sae(fresh_sae(architecture(kind), "study"), tmp_path / "sae", metadata={})
    config, file = tmp_path / "sae" / "cfg.json", tmp_path / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights[name][1] = 0.5
    save_file(weights, file)
    edited(config, *OURS, "checksum")
    with pytest.raises(SaeSweepError, match="none of this architecture"):
        load_sae(tmp_path)


def test_the_sae_of_another_run_is_refused(tmp_path):
    sae = fresh_sae(architecture("topk"), "modern")
    save_sae(sae, tmp_path / "sae", metadata={"provenance": {"run_id": "one"}})
    assert torch.equal(load_sae(tmp_path, "one").W_dec, load_sae(tmp_path).W_dec)
    with pytest.raises(SaeSweepError, match="holds the SAE of run one, not of two; delete its folder"):
        load_sae(tmp_path, "two")
