"""Tiny random models of several families, whose norms have weights and biases that are not 1 and 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.activations.conftest import save_model

_GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_GEMMA = {**_LLAMA, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 5}
_OPT = {
    "hidden_size": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 5,
}
_BLOOM = {"n_layer": 2, "hidden_size": 16, "n_head": 2}
_NEO = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]],
}
_FALCON = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_OPT, "word_embed_proj_dim": 16}),
    "opt_post_norm": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    ),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", _NEO),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _GPT2),
    "openai-gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _GPT2),
    "pythia": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _LLAMA),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GEMMA),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GEMMA, "final_logit_softcapping": 1.0}),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_LLAMA, "pad_token_id": 5}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {**_LLAMA, "pad_token_id": 5, "logits_scaling": 3.0}),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {**_LLAMA, "pad_token_id": 5}),
    "mpt": ("MptForCausalLM", "MptConfig", {"n_layers": 2, "d_model": 16, "n_heads": 2, "max_seq_len": 64}),
    "bloom": ("BloomForCausalLM", "BloomConfig", _BLOOM),
    "falcon": ("FalconForCausalLM", "FalconConfig", _FALCON),
    "falcon_alibi": ("FalconForCausalLM", "FalconConfig", {**_FALCON, "alibi": True}),
    "xglm": (
        "XGLMForCausalLM",
        "XGLMConfig",
        {"num_layers": 2, "d_model": 16, "ffn_dim": 32, "attention_heads": 2, "max_position_embeddings": 64},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"num_hidden_layers": 2, "hidden_size": 16}),
}


def save_family(folder: Path, name: str, vocabulary: int = 300) -> Path:
    """Save a model of a family; its vocabulary may be larger than its tokenizer's 300."""
    kind, config, sizes = FAMILIES[name]
    made = getattr(transformers, config)(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes)
    return save_model(folder, _shaken(getattr(transformers, kind)), made)


def _shaken(kind: type[PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def make(config: Any) -> PreTrainedModel:
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
        return model

    return make
