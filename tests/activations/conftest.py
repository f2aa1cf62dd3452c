"""Tiny random language models, saved like real ones."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sae_sweep.activations import LanguageModel, load_language_model
from sae_sweep.config import ModelConfig

EOT = "<|endoftext|>"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on; numbers such as 12 or 345 too. "


def save_gpt2(folder: Path, **shape: int) -> Path:
    """Save a GPT-2 with random weights and a byte-level tokenizer."""
    sizes = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 300, **shape}
    return save_model(folder, GPT2LMHeadModel, GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))


def save_model(folder: Path, kind: type[PreTrainedModel], config: PretrainedConfig) -> Path:
    """Save a model with random weights and a byte-level tokenizer of 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=EOT, eos_token=EOT, unk_token=EOT
    ).save_pretrained(folder)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def lm(model_folder: Path) -> LanguageModel:
    return load_language_model(ModelConfig(path=str(model_folder), dtype="float32"), torch.device("cpu"))
