import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from sae_sweep.activations import model_files, weights_fingerprint
from sae_sweep.activations.model_files import local_path
from sae_sweep.config import ModelConfig, SaeSweepError


def test_the_fingerprint_follows_weights_tokenizer_and_config(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "README.md").write_text("notes")
    original = weights_fingerprint(ModelConfig(path=str(model_folder)))
    assert weights_fingerprint(ModelConfig(path=str(copy))) == original
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        saved = (copy / name).read_bytes()
        (copy / name).write_bytes(saved[:-1] + b" ")
        assert weights_fingerprint(ModelConfig(path=str(copy))) != original
        (copy / name).write_bytes(saved)
    (tmp_path / "a.gguf").write_bytes(b"1")
    (tmp_path / "b.gguf").write_bytes(b"2")
    files = [weights_fingerprint(ModelConfig(path=str(tmp_path / name))) for name in ("a.gguf", "b.gguf")]
    assert files[0] != files[1]


def test_the_fingerprint_of_a_hub_model_is_its_revision():
    assert weights_fingerprint(ModelConfig(path="someone/model")) == "someone/model@main"
    assert weights_fingerprint(ModelConfig(path="gpt2", revision="main")) == "gpt2@main"


def test_every_model_of_the_package_is_pinned_to_a_commit():
    for file in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"):
        path = yaml.safe_load(file.read_text()).get("path")
        if path is None:
            continue  # synthetic: no files
        commit = weights_fingerprint(ModelConfig(path=path)).removeprefix(f"{path}@")
        assert re.fullmatch("[0-9a-f]{40}" if local_path(ModelConfig(path=path)) is None else ".{16}", commit)


def test_a_bundled_model_is_a_folder_of_ours(model_folder, monkeypatch):
    monkeypatch.setattr(model_files, "ASSETS", model_folder.parent)
    assert model_files.local_path(ModelConfig(path=f"bundled:{model_folder.name}")) == model_folder


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_weights_that_are_no_file_are_one_line(model_folder, tmp_path, kind):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights = copy / "model.safetensors"
    weights.unlink()
    make = {"folder": os.mkdir, "pipe": os.mkfifo, "dangling link": lambda path: os.symlink("x", path)}
    make[kind](weights)
    with pytest.raises(
        SaeSweepError, match=r"cannot read model\.path=.*model\.safetensors: (it is not a file|No such)"
    ):
        weights_fingerprint(ModelConfig(path=str(copy)))
