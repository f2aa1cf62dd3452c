"""Embeds documents with a transformers encoder: the mean of its last hidden states, scaled to length 1."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sae_sweep.config import SaeSweepError, expanded, first_line
from sae_sweep.progress import Progress
from sae_sweep.text.formats import readable

_READ = (".safetensors", ".json", ".txt", ".model")
"""Endings of the files that transformers reads of an encoder: weights, config and tokenizer."""
_BATCH = 16
_LONGEST = 512
"""Most tokens of a document that are read; fewer if the encoder is shorter."""
_PROBE = 32
"""Tokens on which it is seen whether a model's first token sees its second."""
_CHARACTERS = 200
"""Characters of a text by which it is seen whether the tokenizer knows its words."""
_UNUSED = "pooler."
"""Weights that an encoder may lack: they follow the last hidden states."""


class _Encoder(NamedTuple):
    tokenizer: Any
    model: Any
    longest: int


def encoder_fingerprint(encoder: str) -> str:
    """Identify an encoder by the content of its weights, config and tokenizer, wherever it is.

    Raises:
        SaeSweepError: if it has no weights, cannot be read, or the hub has none of that name.
    """
    whole = hashlib.sha256()
    files = sorted(path for path in _folder(encoder).glob("*") if path.suffix in _READ)
    if not any(path.suffix == ".safetensors" for path in files):
        raise SaeSweepError(f"dataset.encoder={encoder}: there are no .safetensors weights of an encoder")
    for path in files:
        with readable(path), path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def embed(encoder: str, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
    """The texts as unit vectors; of a long one the beginning counts.

    Raises:
        SaeSweepError: if transformers finds no encoder there.
    """
    folder = _folder(encoder)
    try:
        with quiet_transformers():
            loaded = _load(folder)
        _refuse_unknown_words(loaded.tokenizer, texts)
        _refuse_decoder(loaded, max(texts, key=len))
        parts = list(_means(loaded, texts, f"dataset.encoder={encoder}"))
    except SaeSweepError as error:
        raise SaeSweepError(f"dataset.encoder={encoder}: {error}") from error
    except Exception as error:  # a model of any kind may be there, and fail in any way
        raise SaeSweepError(
            f"dataset.encoder={encoder}: transformers cannot use it as an encoder: {first_line(error)}"
        ) from error
    return np.concatenate(parts)


def _refuse_unknown_words(tokenizer: Any, texts: Sequence[str]) -> None:
    """Refuse a tokenizer that knows few words; transformers makes an empty one if files are missing."""
    beginnings = [text[:_CHARACTERS] for text in texts]
    ids = [one for found in tokenizer(beginnings, add_special_tokens=False)["input_ids"] for one in found]
    unknown = sum(one == tokenizer.unk_token_id for one in ids)
    if not ids or unknown > len(ids) / 2:
        raise SaeSweepError(
            f"its tokenizer knows {len(ids) - unknown:,} of {len(ids):,} tokens of the texts: is a file "
            "missing?"
        )


def _means(encoder: _Encoder, texts: Sequence[str], label: str) -> Iterator[np.ndarray]:
    progress = Progress(label, len(texts), unit="texts")
    try:
        for at in range(0, len(texts), _BATCH):
            yield encoder_mean(encoder, texts[at : at + _BATCH])
            progress.show(min(at + _BATCH, len(texts)), {})
    finally:
        progress.close()


def encoder_mean(encoder: _Encoder, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
    """Mean of the last hidden states over the tokens of each text, scaled to length 1."""
    inputs = encoder.tokenizer(
        list(texts), padding=True, truncation=True, max_length=encoder.longest, return_tensors="pt"
    )
    hidden = encoder.model(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"][..., None]
    means = ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy()
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars of transformers, which count single tensors."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _folder(encoder: str) -> Path:
    """Folder of an encoder; one on the hub is downloaded as far as the hub's cache lacks it."""
    path = expanded(encoder)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or encoder.startswith((".", "~")) or encoder.count("/") > 1:
        raise SaeSweepError(f"dataset.encoder={encoder}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(encoder, allow_patterns=[f"*{suffix}" for suffix in _READ]))
    except (OSError, ValueError) as error:
        raise SaeSweepError(
            f"dataset.encoder={encoder}: no such folder, and it cannot be got from the Hugging Face hub: "
            f"{first_line(error)}"
        ) from error


def _load(folder: Path) -> _Encoder:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, found = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := [name for name in found["missing_keys"] if not name.startswith(_UNUSED)]:
        raise SaeSweepError(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
    most = getattr(model.config, "max_position_embeddings", _LONGEST)
    longest = min(int(tokenizer.model_max_length), most, _LONGEST)
    return _Encoder(tokenizer, model.eval().requires_grad_(False), longest)


def _refuse_decoder(encoder: _Encoder, text: str) -> None:
    """Refuse a model whose first token is the same whatever follows it: its mean says little of a text."""
    longest = min(_PROBE, encoder.longest)
    inputs = encoder.tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
    (ids,) = inputs["input_ids"]
    others = ids[ids != ids[1]] if len(ids) > 1 else ids[:0]
    if not len(others):
        return
    first = encoder.model(**inputs).last_hidden_state[0, 0]
    ids[1] = others[-1]
    if first.equal(encoder.model(**inputs).last_hidden_state[0, 0]):
        raise SaeSweepError("it is a language model whose tokens do not see what follows them")
