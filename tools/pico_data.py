"""The text that gpt2-pico learns from, its tokenizer, and its training sequences."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sae_sweep.text.embedded import EMBEDDED, Corpus, embedded_corpus

EOT = "<|endoftext|>"
VOCAB = 4096
SEQUENCE = 256
"""Positions per sequence: the opening EOT and 255 tokens."""

SHARES = {"stdlib_docs": 0.16, "stdlib_code": 0.28, "library_docs": 0.28, "library_code": 0.28}
"""Share of each corpus in the sequences: equal, except for the smallest, which would repeat too often."""

TRAIN_CHARS = 7_000_000
"""Maximum number of characters to learn from per corpus."""

Ids = NDArray[np.uint16]


def load_corpora(cache: Path) -> dict[str, Corpus]:
    """Return all embedded corpora."""
    return {name: embedded_corpus(name, cache) for name in EMBEDDED}


def training_documents(corpus: Corpus, max_chars: int = TRAIN_CHARS) -> list[str]:
    """Return whole documents of the train side in the order of their hashes, up to `max_chars` characters."""
    chosen, total = [], 0
    for text in sorted(corpus.train, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if total + len(text) <= max_chars:
            chosen.append(text)
            total += len(text)
    return chosen


def train_tokenizer(documents: dict[str, list[str]]) -> Tokenizer:
    """Train a tokenizer of GPT-2's kind: byte-level BPE with GPT-2's splitting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for texts in documents.values() for text in texts), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> Ids:
    """Return the token ids of all documents, EOT after each, shape [n_tokens]."""
    eot = tokenizer.token_to_id(EOT)
    pieces = [np.array([*e.ids, eot], dtype=np.uint16) for e in tokenizer.encode_batch(documents)]
    return np.concatenate(pieces)


def sequences(tokens: Ids, eot: int) -> Ids:
    """Cut tokens into rows of an opening EOT and 255 tokens, [n_sequences, 256]; drop the remainder."""
    rows = len(tokens) // (SEQUENCE - 1)
    cut = tokens[: rows * (SEQUENCE - 1)].reshape(rows, SEQUENCE - 1)
    return np.concatenate([np.full((rows, 1), eot, dtype=tokens.dtype), cut], axis=1)


def training_order(counts: dict[str, int], n_sequences: int, seed: int) -> NDArray[np.int64]:
    """Return the training order, as indices into the concatenated sequences of all corpora.

    Each corpus is spread evenly over the order, and is seen whole, in a new permutation, before any sequence
    of it repeats.
    """
    rng = np.random.default_rng(seed)
    indices, moments, offset = [], [], 0
    for name, count in counts.items():
        wanted = round(n_sequences * SHARES[name])
        epochs = [rng.permutation(count) for _ in range(-(-wanted // count))]
        indices.append(np.concatenate(epochs)[:wanted] + offset)
        moments.append((np.arange(wanted) + rng.random(wanted)) / wanted)
        offset += count
    return np.concatenate(indices)[np.argsort(np.concatenate(moments), kind="stable")]


def prepare(cache: Path, work: Path) -> None:
    """Write the tokenizer, the token ids of both sides and the corpora's fingerprints into `work`."""
    corpora = load_corpora(cache)
    documents = {name: training_documents(corpus) for name, corpus in corpora.items()}
    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(work / "tokenizer.json"))
    facts = {}
    for name, corpus in corpora.items():
        train, held_out = encode(tokenizer, documents[name]), encode(tokenizer, corpus.held_out)
        np.save(work / f"{name}.train.npy", train)
        np.save(work / f"{name}.held_out.npy", held_out)
        facts[name] = {
            "fingerprint": corpus.fingerprint,
            "train_tokens": len(train),
            "train_chars": sum(map(len, documents[name])),
            "train_documents": len(documents[name]),
            "held_out_tokens": len(held_out),
            "held_out_bytes": sum(len(text.encode()) for text in corpus.held_out),
        }
    (work / "data.json").write_text(json.dumps(facts, indent=2) + "\n")


def token_ids(work: Path, side: str) -> dict[str, Ids]:
    """Return the token ids of every corpus for a side, "train" or "held_out"."""
    return {name: np.load(work / f"{name}.{side}.npy") for name in EMBEDDED}
