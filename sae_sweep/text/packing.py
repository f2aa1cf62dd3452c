"""Packs documents into sequences of equal length, and masks special tokens."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import PackingConfig

Tokens = NDArray[np.int32]


class TextTokenizer(Protocol):
    """The part of a language model's tokenizer that packing needs."""

    @property
    def bos_id(self) -> int:
        """Token that opens a text; the end-of-text token for models without a BOS."""
        ...

    @property
    def eot_id(self) -> int:
        """Token that ends a text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all tokens that do not stand for text."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts; special tokens are neither added nor recognised in the text."""
        ...


def pack(
    documents: Iterable[Sequence[int]],
    packing: PackingConfig,
    bos_id: int,
    eot_id: int,
    carry: Sequence[int] = (),
) -> tuple[Tokens, list[int]]:
    """Join documents and cut the result into sequences.

    With `bos_every_sequence`, BOS opens every sequence; without it (the study), every document. Documents are
    cut at `max_document_tokens`, which counts an opening BOS. With `separate_documents`, EOT follows each.

    Args:
        documents: token ids of each document, without special tokens.
        packing: how to pack.
        bos_id: token that opens sequences or documents.
        eot_id: token that separates documents.
        carry: tokens left over from the previous call.

    Returns:
        Sequences, [n, seq_len], and the tokens left over, which do not fill a sequence.
    """
    joined = list(carry)
    for document in documents:
        if not document:
            continue
        opened = [*document] if packing.bos_every_sequence else [bos_id, *document]
        joined += opened[: packing.max_document_tokens]
        if packing.separate_documents:
            joined.append(eot_id)
    body = packing.seq_len - packing.bos_every_sequence
    whole = len(joined) // body
    sequences = np.array(joined[: whole * body], dtype=np.int32).reshape(whole, body)
    if packing.bos_every_sequence:
        sequences = np.pad(sequences, ((0, 0), (1, 0)), constant_values=bos_id)
    return sequences, joined[whole * body :]


class Documents(NamedTuple):
    """Documents as sequences that each hold tokens of one document only."""

    tokens: Tokens
    """[n, seq_len]; the end of a document's last sequence is filled with end-of-text tokens."""
    filled: NDArray[np.bool_]
    """True at tokens of the documents and at BOS, False at what fills a sequence; [n, seq_len]."""
    owners: NDArray[np.int64]
    """Number of each sequence's document, ascending from 0; [n]."""


def pack_documents(
    documents: Iterable[Sequence[int]], packing: PackingConfig, bos_id: int, eot_id: int
) -> Documents:
    """Cut documents into sequences without joining them; documents without tokens are left out.

    Args:
        documents: token ids of each document, without special tokens.
        packing: how to pack; nothing separates documents.
        bos_id: token that opens sequences or documents.
        eot_id: token that fills the last sequence of a document.
    """
    apart = replace(packing, separate_documents=False)
    opening = [bos_id] if packing.bos_every_sequence else []
    rows: list[Tokens] = [np.empty((0, packing.seq_len), np.int32)]
    lengths, owners = [0], []
    for number, document in enumerate(filter(len, documents)):
        whole, rest = pack([document], apart, bos_id, eot_id)
        last = [opening + rest] if rest else []
        rows += [
            whole,
            *(np.pad(row, (0, packing.seq_len - len(row)), constant_values=eot_id)[None] for row in last),
        ]
        lengths += [packing.seq_len] * len(whole) + [len(row) for row in last]
        owners += [number] * (len(whole) + len(last))
    tokens = np.concatenate(rows).astype(np.int32)
    filled = np.arange(packing.seq_len) < np.array(lengths[1:], np.int64)[:, None]
    return Documents(tokens, filled.reshape(tokens.shape), np.array(owners, np.int64))


def token_mask(
    tokens: NDArray[np.integer], special_ids: Collection[int], packing: PackingConfig
) -> NDArray[np.bool_]:
    """Return which positions of `tokens` are used in training, evaluation and patching, in the same shape.

    Special tokens are not, unless `packing.mask_special` is off (the study).
    """
    if not packing.mask_special:
        return np.ones(tokens.shape, dtype=bool)
    return ~np.isin(tokens, list(special_ids))
