"""SAEs on the hub: SAELens's releases by name and folders of repositories, against a stand-in of it."""

import contextlib
import json
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from sae_sweep.config import InitConfig, SaeSweepError
from sae_sweep.saes import load_sae, open_sae, start_fingerprint, start_normalisation, starting_sae
from sae_sweep.saes.hub import HubSAE, destination, named, read_small, upload
from tests.hub import UPLOADS, Server
from tests.saes.foreign_files import DICTIONARY, STUDY, sparsify_folder
from tests.saes.helpers import architecture, config
from tests.saes.test_saelens import X, latents, tensors, write

JB = "gpt2-small-res-jb/blocks.8.hook_resid_pre"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with four repositories; it does not answer outside of a `with`."""
    root = tmp_path_factory.mktemp("hub")
    models = root / "models"

    def saelens(folder, **keys):
        folder.mkdir(parents=True)
        write(folder, "standard", metadata="no", **keys)

    saelens(models / "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", hook_point=JB[18:])
    saelens(
        models / "jbloom/Gemma-2b-Residual-Stream-SAEs/gemma_2b_blocks.12.hook_resid_post_16384",
        hook_point="blocks.12.hook_resid_post",
        normalize_activations="expected_average_only_in",
    )
    sparsify_folder(models / "EleutherAI/sae-pythia/layers.7")
    (models / "EleutherAI/sae-pythia/config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    DICTIONARY(models / "me/dictionaries/a [1]/trainer_0")
    STUDY(models / "me/study")
    (models / "me/study/large.bin").write_bytes(b"not fetched")
    return Server(root)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path, hub):
    monkeypatch.chdir(tmp_path)
    hub.serves(monkeypatch, tmp_path / "cache")


def refused(text) -> str:
    with pytest.raises(SaeSweepError) as caught:
        open_sae(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_release_by_name_and_again_without_the_hub(hub):
    mean = X.mean(-1, keepdim=True)
    f = latents("standard", tensors("standard"), X - mean)  # SAELens's list says: of a model that was centred
    for reach in (hub, contextlib.nullcontext()):
        with reach:
            sae, origin = open_sae(JB)
        assert (origin.layout, origin.layer, origin.hook) == ("SAELens", 8, "blocks.8.hook_resid_pre")
        torch.testing.assert_close(sae.encode(X), f)


def test_the_scale_of_a_release_is_folded(hub, caplog):
    with hub:
        sae, origin = open_sae("gemma-2b-res-jb/blocks.12.hook_resid_post")
    assert origin.layer == 13
    scale, w = 0.21381938399317255, tensors("standard")
    f = latents("standard", w, X * scale)
    torch.testing.assert_close(sae.encode(X), f)
    torch.testing.assert_close(sae(X), (f @ w["W_dec"] + w["b_dec"]) / scale, rtol=1e-5, atol=1e-4)
    assert torch.equal(sae.decode(sae.encode(X)), sae(X))
    assert "average norm" not in caplog.text


@pytest.mark.parametrize(
    ("text", "layout", "model"),
    [
        ("EleutherAI/sae-pythia/layers.7", "sparsify", "EleutherAI/pythia-70m"),
        ("me/dictionaries/a [1]/trainer_0", "dictionary_learning", "gpt2"),
        ("me/study", "the study", "gpt2-small"),
        ("me/study/", "the study", "gpt2-small"),
    ],
)
def test_a_folder_of_any_repository(hub, text, layout, model, tmp_path):
    with hub:
        _, origin = open_sae(text)
    assert (origin.layout, origin.model, origin.layer) == (layout, model, 8)
    assert not list(tmp_path.rglob("large.bin"))


def test_a_folder_here_comes_first(tmp_path):
    STUDY(tmp_path / "me" / "study")
    assert open_sae("me/study")[1].folder == tmp_path / "me" / "study"


def test_what_the_hub_does_not_have(hub):
    with hub:
        assert refused("me/study/none").startswith(
            "me/study on the hub, or its copy here, has no SAE in none"
        )
        assert "has no SAE in its main folder: none of cfg.json" in refused("me/dictionaries")
        assert "me/nothing: no such folder here, and no such repository on the hub" in refused("me/nothing")
        line = refused("gpt2-small-res-jc/blocks.8.hook_resid_pre")
        assert "; SAELens has the releases gpt2-small-res-jb" in line


def test_without_a_hub(monkeypatch):
    line = refused(JB)
    assert line.startswith("cannot get jbloom/GPT2-Small-SAEs-Reformatted from the Hugging Face hub (")
    assert line.endswith(
        "Offline, give a folder; or fill the hub's cache while online: hf download "
        "jbloom/GPT2-Small-SAEs-Reformatted --include 'blocks.8.hook_resid_pre/*'"
    )
    assert "; SAELens has the releases gpt2-small-res-jb" in refused(
        "gpt2-small-resjb/blocks.8.hook_resid_pre"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused("me/study").startswith("cannot get me/study from the Hugging Face hub (")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gpt2-small-res-jb", "the release gpt2-small-res-jb has blocks.0.hook_resid_pre, blocks.1"),
        ("gpt2-small-res-jb/blocks.88.hook_resid_pre", "the release gpt2-small-res-jb has blocks.0.hook"),
        ("gemma-2-9b-res-matryoshka-dc", " and 11 more; write gemma-2-9b-res-matryoshka-dc/NAME"),
        ("gpt2-small-res-j", "no name on the hub either.*; SAELens has the releases gpt2-small-res-jb"),
        ("", "no SAE in"),
        ("me/../x", "no such folder, and it is no name on the hub either"),
        ("me//x", "no such folder, and it is no name on the hub either"),
        ("./me/study", "there is no such folder; known are"),
        ("/nowhere/study", "there is no such folder; known are"),
        ("~/nowhere/study", "there is no such folder; known are"),
        ("me and/a b", "cannot get me and/a b from the Hugging Face hub"),
        ("n" * 300, "cannot read n"),
    ],
)
def test_what_is_no_name(text, why):
    with pytest.raises(SaeSweepError, match=why) as caught:
        open_sae(text)
    assert "\n" not in str(caught.value)


def test_the_table_of_releases():
    assert named(JB) == HubSAE(
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "blocks.8.hook_resid_pre",
        {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    )
    assert named("mistral-7b-res-wg/blocks.8.hook_resid_pre").changes == {
        "normalize_activations": "constant_norm_rescale"
    }
    assert named(f"{JB}/") == named(JB)
    assert named("me/dictionaries/a/trainer_0") == HubSAE("me/dictionaries", "a/trainer_0")


def test_weights_come_whole(hub):
    with hub:
        sae, origin = open_sae("EleutherAI/sae-pythia/layers.7")
    assert torch.equal(sae.W_dec, load_file(origin.folder / "sae.safetensors")["W_dec"])


FILES = {"a b/cfg.json": b"{}", "a b/x.safetensors": b"weights", "README.md": b"# card"}


@pytest.mark.filterwarnings(UPLOADS)
def test_what_is_uploaded_is_there_whole(hub, tmp_path):
    local = tmp_path / "y.safetensors"
    local.write_bytes(b"more weights")
    with hub:
        assert upload("me/new", {**FILES, "y.safetensors": local}, "two SAEs") == f"{hub.url}/me/new"
        upload("me/new", {"README.md": b"# another"}, "its card")  # the repository is there by now
        found = read_small("me/new", ["README.md", "x.safetensors"])
        assert read_small("me/nobody", ["README.md"]) == {}
    assert found == {"README.md": b"# another", "a b/x.safetensors": b"weights"}
    assert (hub.root / "models/me/new/y.safetensors").read_bytes() == b"more weights"


@pytest.mark.filterwarnings(UPLOADS)
def test_an_upload_that_is_refused_leaves_nothing(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with hub, pytest.raises(SaeSweepError, match=r"cannot publish to me/mine .*401.*: log in with `hf auth"):
        upload("me/mine", FILES, "x")
    assert not (hub.root / "models/me/mine").exists()
    for files in (FILES, {"y": tmp_path / "gone"}):
        with pytest.raises(
            SaeSweepError, match=r"cannot publish to me/mine .*: the same command tries again"
        ):
            upload("me/mine", files, "x")


def test_names_that_are_never_a_folder_here(hub, tmp_path):
    STUDY(tmp_path / "EleutherAI" / "sae-pythia" / "layers.7")
    STUDY(tmp_path / "hf:me" / "study")
    with hub:
        assert open_sae("hf:EleutherAI/sae-pythia/layers.7")[1].layout == "sparsify"
        sae = load_sae("hf:me/dictionaries/a [1]/trainer_0")
        assert sae.architecture.kind == "foreign"
        assert "; there are SAEs in a [1]/trainer_0" in refused("hf:me/dictionaries")
    assert refused("hf:me").startswith("me: it is no name on the hub, as RELEASE/NAME")


def test_a_run_starts_from_one_and_again_without_the_hub(hub):
    name = "hf:EleutherAI/sae-pythia/layers.7"
    with hub:
        print_ = start_fingerprint(name)
    assert start_fingerprint(name) == print_
    assert start_normalisation(name) == "none"
    one = config(architecture("topk", k=3), init=InitConfig(sae=name))
    assert starting_sae(replace(one, dictionary=2), 12, "id").W_enc.shape == (12, 24)
    with hub, pytest.raises(SaeSweepError, match=r"nobody/nothing: .* no such repository on the hub"):
        start_normalisation("hf:nobody/nothing")


@pytest.mark.parametrize("text", ["me/x", "hf:me", "hf:me//x", "hf:"])
def test_where_nothing_can_be_uploaded(text):
    with pytest.raises(SaeSweepError, match=f"to={text}: name a repository on the hub"):
        destination(text)
