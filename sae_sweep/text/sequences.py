"""Packed sequences of a text: the endless training stream, and the held-out text."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sae_sweep.config import PackingConfig, SaeSweepError
from sae_sweep.text.packing import TextTokenizer, Tokens, pack
from sae_sweep.text.source import Place, TextSource

log = logging.getLogger(__name__)

BLOCK_CHARS = 2**18
"""Documents are tokenised together up to about this many characters: enough to keep all cores busy, and
little to repeat when a position is restored."""


class _Cursor(NamedTuple):
    """A point between two documents."""

    epoch: int = 0
    turn: int = 0
    """Units of this epoch that lie behind, in its order."""
    place: Place = None
    """How far the current unit has been read."""
    tokens: int = 0
    """Tokens of this epoch so far, special ones not counted."""


class _Block(NamedTuple):
    """What a number of documents, tokenised together, came to."""

    sequences: Tokens
    after: _Cursor | None
    """Where the next block starts; None at the end of a text that does not repeat."""
    carry: list[int]
    """Tokens left for the next block."""


class TrainingSequences:
    """The training split as sequences.

    The order of the documents comes from `data_seed` and the epoch alone: a permutation of the source's
    units. What is read next is a function of the text, the packing, the tokenizer, the seed and the position.
    """

    def __init__(
        self, source: TextSource, packing: PackingConfig, tokenizer: TextTokenizer, data_seed: int
    ) -> None:
        self._source = source
        self._packing = packing
        self._tokenizer = tokenizer
        self._seed = data_seed
        self._said: set[int] = set()
        self._start_at(_Cursor(), [], 0)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._tokenizer.special_ids

    @property
    def packing(self) -> PackingConfig:
        return self._packing

    @property
    def epoch(self) -> int:
        """Times the text has been read to its end."""
        return self._cursor.epoch

    @property
    def epochs(self) -> float:
        """The same with the part of the current one, to a block and a unit."""
        return self._cursor.epoch + min(1.0, self._cursor.turn / max(1, self._source.units))

    def read(self, n: int) -> Tokens:
        """Return the next `n` sequences, [n, seq_len]; fewer, or none, where text with `exhausted=stop` ends.

        Raises:
            SaeSweepError: if the text has no tokens, or ends with `exhausted=error`.
        """
        parts = [np.empty((0, self._packing.seq_len), np.int32)]
        missing = n
        while missing > 0 and (part := self._take(missing)) is not None:
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)

    def position(self) -> dict[str, Any]:
        """Return where the stream is, as plain JSON values."""
        return {
            "units": self._source.units,
            "cursor": list(self._cursor),
            "carry": list(self._carry),
            "emitted": self._emitted,
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position; reads again no more than the block of documents it lies in.

        Raises:
            SaeSweepError: if the text has changed since.
        """
        if position["units"] != self._source.units:
            raise SaeSweepError(
                f"{self._source.label} has changed since the checkpoint ({position['units']} pieces then, "
                f"{self._source.units} now): restore the text, or start the run in another sweep"
            )
        self._start_at(_Cursor(*position["cursor"]), position["carry"], position["emitted"])

    def _start_at(self, cursor: _Cursor, carry: list[int], emitted: int) -> None:
        self._cursor, self._carry, self._emitted = cursor, list(carry), emitted
        self._block: _Block | None = None
        self._live: Iterator[tuple[str, int, Place]] | None = None

    def _take(self, most: int) -> Tokens | None:
        """Return up to `most` sequences of the current block; None at the end of the text."""
        if self._block is None:
            self._block = self._load()
        if self._emitted == len(self._block.sequences):
            if self._block.after is None:
                self._check_end()
                return None
            self._cursor, self._carry, self._emitted = self._block.after, self._block.carry, 0
            self._block = self._load()
        part = self._block.sequences[self._emitted : self._emitted + most]
        self._emitted += len(part)
        return part

    def _check_end(self) -> None:
        if self._source.exhausted == "error":
            raise SaeSweepError(
                f"{self._source.label} ran out after an epoch: lower tokens, give more text, or set "
                "dataset.exhausted=repeat"
            )

    def _load(self) -> _Block:
        """Read, tokenise and pack the documents behind the cursor."""
        cursor = self._cursor
        if self._live is None:
            self._live = self._walk(cursor)
        texts, chars, ended = [], 0, True
        for text, turn, place in self._live:
            texts.append(text)
            chars += len(text)
            cursor = cursor._replace(turn=turn, place=place)
            if chars >= BLOCK_CHARS:
                ended = False
                break
        documents = self._tokenizer.encode_batch(texts)
        tokens = cursor.tokens + sum(map(len, documents))
        bos, eot = self._tokenizer.bos_id, self._tokenizer.eot_id
        sequences, carry = pack(documents, self._packing, bos, eot, self._carry)
        after = self._next_epoch(cursor.epoch, tokens) if ended else cursor._replace(tokens=tokens)
        return _Block(sequences, after, carry)

    def _walk(self, cursor: _Cursor) -> Iterator[tuple[str, int, Place]]:
        """Yield the rest of an epoch: each document, the turn of its unit, and the place behind it."""
        order = np.random.default_rng([self._seed, cursor.epoch]).permutation(self._source.units)
        for turn in range(cursor.turn, len(order)):
            place = cursor.place if turn == cursor.turn else None
            for text, behind in self._source.read(int(order[turn]), place):
                yield text, turn, behind

    def _next_epoch(self, epoch: int, tokens: int) -> _Cursor | None:
        if tokens == 0:
            raise SaeSweepError(f"{self._source.label} holds no text to train on")
        self._live = None
        if self._source.exhausted != "repeat":
            return None
        if epoch not in self._said:
            self._said.add(epoch)
            log.info("%s: all %s tokens read, epoch %d follows", self._source.label, f"{tokens:,}", epoch + 2)
        return _Cursor(epoch + 1)


def held_out_sequences(
    source: TextSource, packing: PackingConfig, tokenizer: TextTokenizer, tokens: int
) -> Tokens:
    """Return sequences of held-out text, [n, seq_len], with at least `tokens` tokens if it has as many.

    Raises:
        SaeSweepError: if the held-out text does not fill one sequence.
    """
    wanted = -(-tokens // packing.seq_len)
    parts: list[Tokens] = []
    carry: list[int] = []
    for texts in _blocks(source.held_out()):
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


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    """Gather texts up to a few sequences' worth, so that a small need does not tokenise a whole split."""
    block: list[str] = []
    for text in texts:
        block.append(text)
        if sum(map(len, block)) >= BLOCK_CHARS // 4:
            yield block
            block = []
    if block:
        yield block
