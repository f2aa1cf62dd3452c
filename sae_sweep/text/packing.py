"""From documents to sequences of equal length."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import PackingConfig

Tokens = NDArray[np.int32]


class TextTokenizer(Protocol):
    """What packing needs to know of a language model's tokenizer."""

    @property
    def bos_id(self) -> int:
        """Opens a text; models without one use the end-of-text token for it."""
        ...

    @property
    def eot_id(self) -> int:
        """Ends a text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """All ids that stand for no text."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokenise; adds no special tokens, and reads none out of the text."""
        ...


def pack(
    documents: Iterable[Sequence[int]],
    packing: PackingConfig,
    bos_id: int,
    eot_id: int,
    carry: Sequence[int] = (),
) -> tuple[Tokens, list[int]]:
    """Join documents and cut them into sequences.

    With `bos_every_sequence` BOS opens every sequence, else (the study) every document. Documents are cut at
    `max_document_tokens`, an opening BOS included, and EOT follows each with `separate_documents`.

    Args:
        documents: token ids of each document, without special tokens.
        packing: how to pack.
        bos_id: opens sequences or documents.
        eot_id: separates documents.
        carry: what the previous call left over.

    Returns:
        The sequences, [n, seq_len], and the tokens left over, fewer than a sequence.
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


def token_mask(
    tokens: NDArray[np.integer], special_ids: Collection[int], packing: PackingConfig
) -> NDArray[np.bool_]:
    """Return True where a position counts, in the shape of `tokens`.

    Special tokens do not count, unless `packing.mask_special` is off (the study), and then everything does.
    """
    if not packing.mask_special:
        return np.ones(tokens.shape, dtype=bool)
    return ~np.isin(tokens, list(special_ids))
