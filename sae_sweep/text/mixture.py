"""Mixtures of texts: each sequence is from one text, in shares that are exact wherever a run stops."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_sweep.config import PackingConfig, SaeSweepError, is_count
from sae_sweep.text import sequences as plain
from sae_sweep.text.packing import TextTokenizer, Tokens
from sae_sweep.text.sequences import TrainingSequences
from sae_sweep.text.source import TextSource


class Mixture:
    """Texts and the shares of the sequences that they have."""

    def __init__(self, label: str, parts: Sequence[TextSource], weights: Sequence[float]) -> None:
        self.label = label
        """Name of the mixture in messages."""
        self.parts = list(parts)
        self.weights = list(weights)
        """The share of each part; they sum to 1."""
        self.summary = "; ".join(part.summary for part in parts if part.summary)
        """What there is to read and what is skipped, in one line; empty if that is not known."""


Text = TextSource | Mixture
"""What `open_text` opens."""


class MixedSequences:
    """Training sequences of a mixture, each from the part that is furthest behind its share.

    After any number of sequences, each of two parts is less than one sequence away from its share. Each part
    repeats by itself when it ends, or does what `exhausted` says.
    """

    def __init__(
        self, mixture: Mixture, packing: PackingConfig, tokenizer: TextTokenizer, data_seed: int
    ) -> None:
        self._label = mixture.label
        self._packing = packing
        self._parts = [TrainingSequences(part, packing, tokenizer, data_seed) for part in mixture.parts]
        self._weights = mixture.weights
        self._counts = [0] * len(self._parts)

    @property
    def epochs(self) -> float:
        """Times that the part that was read most often has been read."""
        return max(part.epochs for part in self._parts)

    def read(self, n: int) -> Tokens:
        """Return the next `n` sequences, [n, seq_len]; fewer once a part with `exhausted=stop` is at its end.

        Raises:
            SaeSweepError: as `TrainingSequences.read`.
        """
        start = self.position()
        turns = _turns(self._weights, self._counts, n)
        times = [int((turns == number).sum()) for number in range(len(self._parts))]
        read = [part.read(number) for part, number in zip(self._parts, times, strict=True)]
        sequences = _interleave(turns, read, self._packing.seq_len)
        if len(sequences) < n:  # the other parts have been read too far
            self.restore(start)
            return self.read(len(sequences))
        self._counts = [count + number for count, number in zip(self._counts, times, strict=True)]
        return sequences

    def position(self) -> dict[str, Any]:
        """Return the current position as JSON values."""
        return {"counts": list(self._counts), "parts": [part.position() for part in self._parts]}

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            SaeSweepError: if a text has changed since, or `position` is not a position in them.
        """
        if not isinstance(position, dict) or position.keys() != {"counts", "parts"}:
            raise self._no_position("its keys differ")
        counts, parts = position["counts"], position["parts"]
        if not all(isinstance(one, list) and len(one) == len(self._parts) for one in (counts, parts)):
            raise self._no_position("it is one of another number of texts")
        if not all(map(is_count, counts)):
            raise self._no_position(f"counts={counts}")
        for part, place in zip(self._parts, parts, strict=True):
            part.restore(place)
        self._counts = list(counts)

    def _no_position(self, what: str) -> SaeSweepError:
        return SaeSweepError(
            f"the checkpoint's position is not one in {self._label} ({what}): "
            "delete the run's checkpoint folder to start it again"
        )


def training_sequences(
    text: Text, packing: PackingConfig, tokenizer: TextTokenizer, data_seed: int
) -> TrainingSequences | MixedSequences:
    """The training sequences of a text or of a mixture."""
    if isinstance(text, Mixture):
        return MixedSequences(text, packing, tokenizer, data_seed)
    return TrainingSequences(text, packing, tokenizer, data_seed)


def held_out_sequences(text: Text, packing: PackingConfig, tokenizer: TextTokenizer, tokens: int) -> Tokens:
    """Return sequences of held-out text, [n, seq_len]: `tokens` tokens rounded up, or all if there are fewer.

    Those of a mixture have its shares; they end where the text of the part whose turn it is does.

    Raises:
        SaeSweepError: if the held-out text does not fill one sequence, of a mixture one of each part.
    """
    if not isinstance(text, Mixture):
        return plain.held_out_sequences(text, packing, tokenizer, tokens)
    turns = _turns(text.weights, [0] * len(text.parts), -(-tokens // packing.seq_len))
    wanted = [max(1, int((turns == number).sum())) * packing.seq_len for number in range(len(text.parts))]
    parts = [
        plain.held_out_sequences(part, packing, tokenizer, number)
        for part, number in zip(text.parts, wanted, strict=True)
    ]
    return _interleave(turns, parts, packing.seq_len)


def _turns(weights: Sequence[float], counts: Sequence[int], n: int) -> NDArray[np.int64]:
    """The parts of the next `n` sequences: each the one whose count is furthest below its share."""
    return np.fromiter(_each_turn(weights, list(counts), n), dtype=np.int64, count=n)


def _each_turn(weights: Sequence[float], counts: list[int], n: int) -> Iterator[int]:
    for done in range(sum(counts) + 1, sum(counts) + n + 1):
        behind = [weight * done - count for weight, count in zip(weights, counts, strict=True)]
        turn = behind.index(max(behind))
        counts[turn] += 1
        yield turn


def _interleave(turns: NDArray[np.int64], parts: Sequence[Tokens], seq_len: int) -> Tokens:
    """Sequences in the order of the turns, up to the first that its part does not have."""
    mixed = np.empty((len(turns), seq_len), np.int32)
    complete = len(turns)
    for number, sequences in enumerate(parts):
        rows = np.flatnonzero(turns == number)
        if len(sequences) < len(rows):
            complete = min(complete, int(rows[len(sequences)]))
        mixed[rows[: len(sequences)]] = sequences[: len(rows)]
    return mixed[:complete]
