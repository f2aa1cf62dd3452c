"""Encoders: documents by their meaning, against a tiny BERT whose means are taken by hand."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LongformerConfig,
    LongformerModel,
    PreTrainedTokenizerFast,
)

from sae_sweep import progress
from sae_sweep.config import DomainDataset, SaeSweepError
from sae_sweep.text.domain import DomainText, selection_fingerprint
from sae_sweep.text.encoder import embed, encoder_fingerprint
from tests.hub import Server
from tests.text.helpers import ListText

WORDS = ["[PAD]", "[UNK]", "cat", "dog", "await", "async", "the", "a"]
TEXTS = ["the cat", "a dog the dog a dog", "await", "async await the await"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer whose words follow their numbers."""
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), num_hidden_layers=1, **sizes)).save_pretrained(folder)
    return folder


def test_a_text_is_the_mean_of_its_own_tokens(encoder: Path) -> None:
    found = embed(str(encoder), TEXTS)
    model = BertModel.from_pretrained(encoder).eval()
    for text, vector in zip(TEXTS, found, strict=True):  # alone, so without padding
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    long = "cat " * 8
    np.testing.assert_allclose(
        embed(str(encoder), [long + "dog " * 9]), embed(str(encoder), [long]), atol=1e-6
    )


def test_documents_are_selected_by_their_cosine_with_the_examples(encoder: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for number, text in enumerate(["await", "cat"]):
        (seeds / f"{number}.txt").write_text(text)
    dataset = DomainDataset(of="list", seeds=str(seeds), encoder=str(encoder), documents=2)
    vectors = embed(str(encoder), ["await", "cat", *TEXTS])
    cosines = (vectors[2:] @ vectors[:2].T).mean(1)
    text = DomainText(dataset, ListText([TEXTS], TEXTS))
    chosen = [TEXTS[at] for at in sorted(np.argsort(-cosines)[:2])]
    assert [document for unit in range(text.units) for document, _ in text.read(unit)] == chosen
    assert list(text.held_out()) == chosen
    by_words = DomainDataset(of="list", seeds=str(seeds))
    assert selection_fingerprint(dataset) == [
        *selection_fingerprint(by_words),
        encoder_fingerprint(str(encoder)),
    ]


def test_an_encoder_is_its_content(encoder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    (copy / "README.md").write_text("a copy")
    assert encoder_fingerprint(str(copy)) == encoder_fingerprint(str(encoder))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert encoder_fingerprint(str(copy)) != encoder_fingerprint(str(encoder))


_CAUSAL = "it is a language model whose tokens do not see what follows them"


def _language_model(folder: Path) -> str:
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    return _CAUSAL


def _decoder(folder: Path) -> str:
    GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    return _CAUSAL


def _damaged(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"damaged")
    return "transformers cannot use it as an encoder: "


def _of_another_size(folder: Path) -> str:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    return "its weights lack 16 tensors, such as "


def _without_tokenizer(folder: Path) -> str:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return "its tokenizer knows "


@pytest.mark.parametrize(
    "damage",
    [_language_model, _decoder, _damaged, _of_another_size, _without_tokenizer],
)
def test_what_is_no_encoder_is_one_line(encoder: Path, tmp_path: Path, damage: object) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    problem = damage(folder)  # type: ignore[operator]
    with pytest.raises(SaeSweepError) as error:
        embed(str(folder), ["cat", "the dog"])
    assert str(error.value).startswith(f"dataset.encoder={folder}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_whose_unused_words_are_alike_is_one(encoder: Path, tmp_path: Path) -> None:
    model = BertModel.from_pretrained(encoder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[[0, -1]] = 0
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    model.save_pretrained(folder)
    assert embed(str(folder), ["the cat", "dog"]).shape == (2, 8)


def test_an_encoder_that_sees_only_its_neighbours_is_one(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "attention_window": 4}
    config = LongformerConfig(vocab_size=len(WORDS), num_hidden_layers=1, pad_token_id=0, **sizes)
    LongformerModel(config).save_pretrained(folder)
    assert embed(str(folder), ["the cat a dog await async " * 4, "dog"]).shape == (2, 8)


def test_its_progress_is_shown(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    embed(str(encoder), ["the cat"] * 20)
    shown = [message.partition(" (")[0] for message in caplog.messages]
    assert shown == [f"dataset.encoder={encoder}: {done} of 20 texts" for done in (16, 20)]


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SaeSweepError, match=r"dataset\.encoder=.*: there are no \.safetensors"):
        encoder_fingerprint(str(tmp_path))


def test_an_encoder_on_the_hub_is_that_of_the_folder(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "hub")
    server.serves(monkeypatch, tmp_path / "cache")
    shutil.copytree(encoder, tmp_path / "hub/models/me/encoder")
    with server:
        assert encoder_fingerprint("me/encoder") == encoder_fingerprint(str(encoder))
        np.testing.assert_array_equal(embed("me/encoder", TEXTS), embed(str(encoder), TEXTS))
        for name in ("me/nothing", "no name!", "a/b/c", "./nowhere"):
            with pytest.raises(
                SaeSweepError, match=rf"dataset\.encoder={re.escape(name)}: no such folder"
            ) as error:
                embed(name, TEXTS)
            assert "\n" not in str(error.value)
    assert encoder_fingerprint("me/encoder") == encoder_fingerprint(str(encoder))  # without the hub


def test_an_encoder_may_lack_what_it_does_not_need(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "masked")
    BertForMaskedLM(BertConfig.from_pretrained(encoder)).save_pretrained(tmp_path / "masked")
    assert embed(str(tmp_path / "masked"), ["cat"]).shape == (1, 8)
