"""Token sequences of a text: endless training sequences that can be resumed, and the held-out sequences."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sae_sweep.config import PackingConfig, SaeSweepError, is_count
from sae_sweep.text.packing import Documents, TextTokenizer, Tokens, pack, pack_documents
from sae_sweep.text.source import Place, TextSource

BLOCK_CHARS = 2**18
"""Approximate number of characters that are tokenised together: enough to keep all cores busy, and few enough
to tokenise again when a position is restored."""
_LONG_CHARS = 2**20
"""Characters above which a document that is not cut is named."""
_CHARS_PER_TOKEN = 8
"""More than most tokens have."""
_DOCUMENT_TOKENS = 1024
"""Tokens at which documents are cut whose frequencies are compared: in a longer one, more features fire."""


class _Cursor(NamedTuple):
    """A point between two documents."""

    epoch: int = 0
    turn: int = 0
    """Number of units of this epoch that come before the current one."""
    place: Place = None
    """How far the current unit has been read."""
    tokens: int = 0
    """Tokens of this epoch so far, as documents are cut, without special tokens."""


class _Block(NamedTuple):
    """Documents that were tokenised and packed together."""

    sequences: Tokens
    after: _Cursor | None
    """Where the next block starts; None at the end of a text that does not repeat."""
    carry: list[int]
    """Tokens left over for the next block."""


class TrainingSequences:
    """Training documents of a text, packed into sequences.

    The document order is a permutation of the source's units, drawn from `data_seed` and the epoch alone. The
    next sequence is a function of text, packing, tokenizer, seed and position.
    """

    def __init__(
        self, source: TextSource, packing: PackingConfig, tokenizer: TextTokenizer, data_seed: int
    ) -> None:
        self._source = source
        self._packing = packing
        self._tokenizer = tokenizer
        self._seed = data_seed
        self._block: _Block | None
        self._unread: Iterator[tuple[str, int, Place]] | None
        """Documents of the epoch after those of the current block; None until they are asked for."""
        self._start_at(_Cursor(), [], 0)

    @property
    def epochs(self) -> float:
        """Times the text has been read, the current epoch counted by its finished units."""
        return self._cursor.epoch + self._cursor.turn / max(1, self._source.units)

    def read(self, n: int) -> Tokens:
        """Return the next `n` sequences, [n, seq_len]; fewer at the end of a text with `exhausted=stop`.

        Raises:
            SaeSweepError: if the text has no tokens, or ends with `exhausted=error`, or the restored position
                is not one in it.
        """
        parts = [np.empty((0, self._packing.seq_len), np.int32)]
        missing = n
        while missing > 0:
            if self._block is None:
                self._block = self._load()
            if self._emitted > len(self._block.sequences):
                raise self._no_position(f"emitted={self._emitted} of {len(self._block.sequences)}")
            if self._emitted == len(self._block.sequences):
                if not self._advance(self._block):
                    break
                continue
            part = self._block.sequences[self._emitted : self._emitted + missing]
            parts.append(part)
            self._emitted += len(part)
            missing -= len(part)
        return np.concatenate(parts)

    def position(self) -> dict[str, Any]:
        """Return the current position as JSON values."""
        return {
            "units": self._source.units,
            "cursor": list(self._cursor),
            "carry": list(self._carry),
            "emitted": self._emitted,
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position; at most one block of documents is read again.

        Raises:
            SaeSweepError: if the text has changed since, or `position` is not a position in it.
        """
        if not isinstance(position, dict) or position.keys() != self.position().keys():
            raise self._no_position("its keys differ")
        units = position["units"]
        if units != self._source.units:
            raise SaeSweepError(
                f"{self._source.label} has changed since the checkpoint ({units} pieces then, "
                f"{self._source.units} now): restore the text, or start the run in another sweep"
            )
        cursor, carry, emitted = position["cursor"], position["carry"], position["emitted"]
        if not self._is_cursor(cursor):
            raise self._no_position(f"cursor={cursor}")
        if not _are_counts(carry, 2**31) or len(carry) >= self._packing.seq_len:
            raise self._no_position("carry is not the beginning of a sequence")
        if not is_count(emitted):
            raise self._no_position(f"emitted={emitted}")
        self._start_at(_Cursor(*cursor), carry, emitted)

    def _is_cursor(self, cursor: Any) -> bool:
        if not isinstance(cursor, list) or len(cursor) != len(_Cursor._fields):
            return False
        epoch, turn, place, tokens = cursor
        readable = place is None or isinstance(place, dict) or is_count(place)
        return readable and _are_counts([epoch, turn, tokens]) and turn < max(1, self._source.units)

    def _no_position(self, what: str) -> SaeSweepError:
        return SaeSweepError(
            f"the checkpoint's position is not one in {self._source.label} ({what}): "
            "delete the run's checkpoint folder to start it again"
        )

    def _start_at(self, cursor: _Cursor, carry: list[int], emitted: int) -> None:
        self._cursor, self._carry, self._emitted = cursor, list(carry), emitted
        self._block = self._unread = None

    def _advance(self, block: _Block) -> bool:
        """Move to the start of the next block; return False if `block` is the last one of the text."""
        if block.after is None:
            if self._source.exhausted == "error":
                raise SaeSweepError(
                    f"{self._source.label} ran out after an epoch: lower tokens, give more text, or set "
                    "dataset.exhausted=repeat"
                )
            return False
        self._cursor, self._carry, self._emitted = block.after, block.carry, 0
        self._block = None
        return True

    def _load(self) -> _Block:
        """Read, tokenise and pack the documents after the cursor."""
        cursor = self._cursor
        if self._unread is None:
            self._unread = self._documents(cursor)
        texts, chars, epoch_ended = [], 0, True
        for text, turn, place in self._unread:
            texts.append(text)
            chars += len(text)
            if len(text) > _LONG_CHARS and self._packing.max_document_tokens is None:
                self._source.say_long(len(text))
            cursor = cursor._replace(turn=turn, place=place)
            if chars >= BLOCK_CHARS:
                epoch_ended = False
                break
        documents = self._tokenizer.encode_batch(texts)
        longest = self._packing.max_document_tokens or sys.maxsize
        tokens = cursor.tokens + sum(min(len(document), longest) for document in documents)
        bos, eot = self._tokenizer.bos_id, self._tokenizer.eot_id
        sequences, carry = pack(documents, self._packing, bos, eot, self._carry)
        after = self._next_epoch(cursor.epoch, tokens) if epoch_ended else cursor._replace(tokens=tokens)
        return _Block(sequences, after, carry)

    def _documents(self, cursor: _Cursor) -> Iterator[tuple[str, int, Place]]:
        """Yield the remaining documents of an epoch, each with its unit's turn and the place after it."""
        order = np.random.default_rng([self._seed, cursor.epoch]).permutation(self._source.units)
        for turn in range(cursor.turn, len(order)):
            start = cursor.place if turn == cursor.turn else None
            for text, place in self._source.read(int(order[turn]), start):
                yield text, turn, place

    def _next_epoch(self, epoch: int, tokens: int) -> _Cursor | None:
        """Return the start of the epoch after `epoch`, which had `tokens` tokens; None if the text ends."""
        if tokens == 0:
            raise SaeSweepError(f"{self._source.label} holds no text to train on")
        self._unread = None
        if self._source.exhausted != "repeat":
            return None
        self._source.say_repeats(epoch + 1, tokens)
        return _Cursor(epoch + 1)


def _are_counts(values: Any, below: int = 2**63) -> bool:
    """Whether `values` is a list of integers from 0 to `below`."""
    return isinstance(values, list) and all(is_count(value, below) for value in values)


def held_out_sequences(
    source: TextSource, packing: PackingConfig, tokenizer: TextTokenizer, tokens: int
) -> Tokens:
    """Return sequences of held-out text, [n, seq_len]: `tokens` tokens rounded up, or all if there are fewer.

    Raises:
        SaeSweepError: if the held-out text does not fill one sequence.
    """
    wanted = -(-tokens // packing.seq_len)
    parts: list[Tokens] = []
    carry: list[int] = []
    chars = min(BLOCK_CHARS // 4, _CHARS_PER_TOKEN * wanted * packing.seq_len)
    for texts in _blocks(source.held_out(), chars):
        documents = tokenizer.encode_batch(texts)
        sequences, carry = pack(documents, packing, tokenizer.bos_id, tokenizer.eot_id, carry)
        parts.append(sequences)
        if sum(map(len, parts)) >= wanted:
            break
    if not any(map(len, parts)):
        raise SaeSweepError(
            f"the held-out text of {source.label} does not fill one sequence of {packing.seq_len} tokens: "
            "give more text, or lower dataset.held_out_every"
        )
    return np.concatenate(parts)[:wanted]


def held_out_documents(
    source: TextSource, packing: PackingConfig, tokenizer: TextTokenizer, tokens: int
) -> Documents:
    """Return whole held-out documents in sequences of their own, until they have `tokens` tokens together.

    Each is cut at `packing.max_document_tokens`, or at 1,024 tokens without one.

    Raises:
        SaeSweepError: if the held-out text has fewer than two documents with tokens.
    """
    packing = replace(packing, max_document_tokens=packing.max_document_tokens or _DOCUMENT_TOKENS)
    documents: list[list[int]] = []
    blocks = map(tokenizer.encode_batch, _blocks(source.held_out(), BLOCK_CHARS // 4))
    for document in filter(None, itertools.chain.from_iterable(blocks)):
        documents.append(document[: packing.max_document_tokens])
        tokens -= len(documents[-1])
        if tokens <= 0:
            break
    if len(documents) < 2:
        raise SaeSweepError(
            f"{len(documents)} document of the held-out text of {source.label} has tokens, and its "
            "frequencies need at least two: give more text, or lower dataset.held_out_every"
        )
    return pack_documents(documents, packing, tokenizer.bos_id, tokenizer.eot_id)


def _blocks(texts: Iterator[str], chars: int) -> Iterator[list[str]]:
    """Group texts into small blocks, so that a small request does not read the whole held-out split."""
    block: list[str] = []
    for text in texts:
        block.append(text)
        if sum(map(len, block)) >= chars:
            yield block
            block = []
    if block:
        yield block
