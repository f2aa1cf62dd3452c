"""The door to SAEs on disk: which layout a folder has, and what its SAE reads."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from sae_sweep.config import SaeSweepError
from sae_sweep.saes import load_sae, open_sae, save_sae
from tests.saes.foreign_files import (
    DICTIONARY,
    STUDY,
    dictionary_folder,
    refused,
    sparsify_folder,
    study_folder,
)
from tests.saes.helpers import architecture, fresh_sae


def test_an_unknown_layout_says_what_is_there_and_what_is_known(tmp_path):
    known = (
        "known are cfg.json with sae_weights.safetensors (sae_sweep and SAELens), cfg.json with "
        "sae.safetensors (sparsify), config.json with ae.pt (dictionary_learning), config.json with sae.pt "
        "(the study's trainer)"
    )
    assert refused(tmp_path).endswith(f"it is empty; {known}")
    assert "there is no such folder" in refused(tmp_path / "none")
    for name in ("params.npz", "a\nb"):
        (tmp_path / name).touch()
    (tmp_path / "layers.3").mkdir()
    assert refused(tmp_path) == f"no SAE in {tmp_path}: it holds 'a\\nb', layers.3/, params.npz; {known}"
    for number in range(20):
        (tmp_path / f"z{number}").touch()
    assert " and 15 more; known" in refused(tmp_path)
    assert "it is a file, not a folder" in refused(tmp_path / "params.npz")
    refused(tmp_path / ("n" * 300))


def test_a_folder_of_several_saes_names_them(tmp_path):
    for name in ("layers.4", "layers.3"):
        sparsify_folder(tmp_path / name)
    (tmp_path / "logs").mkdir()
    assert "layers.4/, logs/; there are SAEs in its folders layers.3, layers.4; known are" in refused(
        tmp_path
    )


def test_weights_alone_and_a_config_alone_are_no_layout(tmp_path):
    study_folder(tmp_path, "topk")
    (tmp_path / "config.json").rename(tmp_path / "cfg.json")
    assert "it holds cfg.json, sae.pt" in refused(tmp_path)


def test_two_saes_in_a_folder_are_not_guessed_between(tmp_path):
    study_folder(tmp_path, "topk")
    save_file({"a": torch.zeros(1)}, tmp_path / "sae.safetensors")
    load_sae(tmp_path)
    (tmp_path / "cfg.json").touch()
    assert "holds several SAEs, of sparsify and of the study's trainer" in refused(tmp_path)


def test_where_they_come_from(tmp_path):
    study_folder(tmp_path / "study", "topk")
    dictionary_folder(tmp_path / "dict", "AutoEncoder")
    dictionary_folder(
        tmp_path / "before", "AutoEncoder", trainer={"layer": 8, "submodule_name": "resid_pre_layer_8"}
    )
    sparsify_folder(tmp_path / "run" / "layers.7")
    sparsify_folder(tmp_path / "run" / "gpt_neox.layers.7" / "seed1")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "gpt2", "ctx_len": 2048}))
    save_sae(
        fresh_sae(architecture("topk"), "modern"),
        tmp_path / "ours" / "sae",
        metadata={"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128},
    )
    expected = {
        "study": ("the study", "gpt2-small", "blocks.8.hook_resid_pre", 128),
        "dict": ("dictionary_learning", "gpt2", "resid_post_layer_7", 128),
        "before": ("dictionary_learning", "gpt2", "resid_pre_layer_8", 128),
        "run/layers.7": ("sparsify", "gpt2", "layers.7", 2048),
        "run/gpt_neox.layers.7/seed1": ("sparsify", None, "gpt_neox.layers.7", None),
        "ours": ("sae_sweep", "gpt2", "blocks.8.hook_resid_pre", 128),
    }
    for folder, (layout, model, hook, context) in expected.items():
        _, origin = open_sae(str(tmp_path / folder))
        assert (origin.layout, origin.hook, origin.layer) == (layout, hook, 8)
        if "seed" not in folder:
            assert (origin.model, origin.context) == (model, context)
    assert open_sae(str(tmp_path / "run/gpt_neox.layers.7/seed1"))[1].model == "gpt2"


def test_files_that_do_not_say_what_they_read(tmp_path):
    study_folder(tmp_path / "study", "topk", hook_point="no", model_name=7, seq_len="long")
    dictionary_folder(tmp_path / "dict", "AutoEncoder", trainer={"submodule_name": None}, buffer=3)
    sparsify_folder(tmp_path / "mine")
    (tmp_path / "config.json").write_text("{")
    save_sae(fresh_sae(architecture("topk"), "modern"), tmp_path / "ours" / "sae", metadata={})
    for folder in ("study", "dict", "mine", "ours"):
        _, origin = open_sae(str(tmp_path / folder))
        assert (origin.hook, origin.layer, origin.context) == (None, None, None)
        assert origin.model in (None, "gpt2")


@pytest.mark.parametrize(
    ("write", "keys", "hook"),
    [
        (STUDY, {"hook_point": "blocks.8.hook_mlp_out"}, "blocks.8.hook_mlp_out"),
        (STUDY, {"hook_point": "blocks.8.attn.hook_z"}, "blocks.8.attn.hook_z"),
        (STUDY, {"hook_point": "blocks.x.hook_resid_pre"}, "blocks.x.hook_resid_pre"),
        (DICTIONARY, {"trainer": {"submodule_name": "mlp_out_layer_7"}}, "mlp_out_layer_7"),
        (sparsify_folder, {}, "layers.7.mlp"),
    ],
)
def test_other_activations_are_refused_by_name_and_still_load(tmp_path, write, keys, hook):
    folder = tmp_path / hook
    write(folder, **keys)
    load_sae(folder)
    with pytest.raises(SaeSweepError, match=rf"{re.escape(hook)}.*only the residual stream before"):
        open_sae(str(folder))


def test_a_hookpoint_of_any_name_is_known_from_the_config_of_the_run(tmp_path):
    sparsify_folder(tmp_path / "wte")
    (tmp_path / "config.json").write_text(json.dumps({"hookpoints": ["wte"]}))
    with pytest.raises(SaeSweepError, match="reads 'wte'"):
        open_sae(str(tmp_path / "wte"))
