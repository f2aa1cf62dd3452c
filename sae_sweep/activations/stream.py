"""The activation stream: runs sequences through the language model and shuffles the residuals in a buffer."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.activations.device import dtype_name, lm_dtype
from sae_sweep.activations.model import LanguageModel
from sae_sweep.config import RunConfig, SaeSweepError, is_count
from sae_sweep.text import MixedSequences, TrainingSequences
from sae_sweep.text.packing import Tokens, token_mask


class ActivationBatch(NamedTuple):
    """SAE inputs of one training step, the same tokens for every layer."""

    activations: dict[int, Float[Tensor, "batch d_in"]]
    """Raw residuals by layer: float32, rounded to the activation dtype."""
    step: int
    """Index of the batch in the stream, from 0."""
    tokens: Int[Tensor, " batch"]
    """Token id at which each row was computed."""
    position: dict[str, Any]
    """Position of the stream right behind the batch; Lightning fetches one batch ahead of the step."""
    epochs: float
    """Times the training text has been read by then."""


class BadActivationsError(SaeSweepError):
    """A layer's activations cannot be trained on: NaN, inf, or too large for the activation dtype.

    The stream stays before that step. Runs of other layers can continue with a stream of their layers that is
    restored to its position.
    """

    def __init__(self, message: str, layer: int, step: int) -> None:
        super().__init__(message)
        self.layer = layer
        self.step = step


def bad_activations(layer: int, step: int, problem: str) -> BadActivationsError:
    """Return the error that a stream raises at a batch with bad values."""
    return BadActivationsError(f"layer {layer}, step {step}: {problem}", layer=layer, step=step)


def check_position(position: Any) -> None:
    """Raise SaeSweepError unless `position` has the keys and types of `ActivationStream.position`."""
    counts = ("step", "buffer", "batch")
    if not isinstance(position, dict) or position.keys() != {*counts, "sequences"}:
        raise bad_position("its keys differ")
    for key in counts:
        if not is_count(position[key]):
            raise bad_position(f"{key}={position[key]}")


def bad_position(what: str) -> SaeSweepError:
    """Return the error for a position that no stream with this config has."""
    return SaeSweepError(
        f"the checkpoint's position is not one of this activation stream ({what}): "
        "delete the run's checkpoint folder to start it again"
    )


class Buffer(NamedTuple):
    """Activations that are computed together and shuffled together."""

    rows: dict[int, Float[Tensor, "n d_in"]]
    """Unmasked residuals by layer, in text order and in the activation dtype."""
    tokens: Int[Tensor, " n"]
    """Token id of each row."""
    order: Int[Tensor, "steps batch"]
    """Row indices of each batch: a seeded permutation, without the rows that do not fill a batch."""
    bad: dict[int, tuple[int, str]]
    """First batch with a bad value, and the problem with it, for each layer that has one."""

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.order)


class ActivationStream:
    """Endless full batches; the batch at step n is a function of the config and n alone.

    About `activations.buffer_tokens` tokens in whole sequences are run through the language model up to the
    last layer, masked, and shuffled with a seed from (shuffle_seed, buffer number). Rows that do not fill a
    batch at the end of a buffer are dropped. Layers and budget of a run do not change the order, except that
    of a budget below the buffer: no more sequences are read than it needs.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sequences: TrainingSequences | MixedSequences,
        config: RunConfig,
        layers: Sequence[int],
    ) -> None:
        lm.check(layers, config.packing.seq_len)
        self._lm = lm
        self._sequences = sequences
        self._config = config
        self._layers = sorted(set(layers))
        self.dtype = activation_dtype(config, lm)
        """Activations are rounded to this dtype."""
        self._seed = config.data_seed if config.shuffle_seed is None else config.shuffle_seed
        self._buffer_sequences = _most_sequences(config)
        self._step = self._number = self._batch = 0
        self._start = sequences.position()
        self._at_start = True  # the sequences are at the start of the buffer
        self._buffer: Buffer | None = None

    @property
    def epochs(self) -> float:
        """Times the training text has been read, up to the end of the current buffer."""
        return self._sequences.epochs

    @property
    def buffer_steps(self) -> int:
        """Largest number of steps per buffer."""
        if self._config.fits_buffer:
            return self._config.steps
        return max(1, self._buffer_sequences * self._config.packing.seq_len // self._config.batch)

    def position(self) -> dict[str, Any]:
        """Return the next step and the start of its buffer as JSON values."""
        return {"step": self._step, "buffer": self._number, "batch": self._batch, "sequences": self._start}

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position; its buffer is computed again when the next batch is requested.

        Raises:
            SaeSweepError: if it is not a position of this stream, or the text has changed since.
        """
        check_position(position)
        self._sequences.restore(position["sequences"])
        self._step, self._number, self._batch = position["step"], position["buffer"], position["batch"]
        self._start, self._at_start, self._buffer = position["sequences"], True, None

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        """Return the next batch; StopIteration at the end of a text with `exhausted=stop`.

        Raises:
            BadActivationsError: if the batch holds NaN, inf, or a value too large for the activation dtype.
            SaeSweepError: if a buffer does not fill a batch, or the text cannot be read.
        """
        buffer = self._buffer or self._compute_buffer()
        if self._batch > buffer.steps:
            raise bad_position(f"batch={self._batch} of {buffer.steps}")
        if self._batch == buffer.steps:
            del buffer  # the next one needs its memory
            self._advance()
            buffer = self._compute_buffer()
        self._buffer = buffer
        for layer, (bad, problem) in buffer.bad.items():
            if bad == self._batch:
                raise bad_activations(layer, self._step, problem)
        rows = buffer.order[self._batch]
        activations = {layer: residuals[rows].float() for layer, residuals in buffer.rows.items()}
        self._step += 1
        self._batch += 1
        return ActivationBatch(activations, self._step - 1, buffer.tokens[rows], self.position(), self.epochs)

    def next_buffer(self) -> Buffer | None:
        """Return the whole buffer that starts at the current position; None at the end of the text.

        Raises:
            SaeSweepError: if it does not fill a batch, or the text cannot be read.
        """
        if self._batch:
            raise ValueError(f"the stream is at batch {self._batch} of a buffer, not at its start")
        try:
            buffer = self._compute_buffer()
        except StopIteration:
            return None
        self._step += buffer.steps
        self._advance()
        return buffer

    def _advance(self) -> None:
        """Move to the start of the next buffer, where the sequences already are."""
        self._number, self._batch = self._number + 1, 0
        self._start, self._at_start = self._sequences.position(), True
        self._buffer = None

    def _compute_buffer(self) -> Buffer:
        """Compute the current buffer; StopIteration if the text ends before it fills a batch."""
        if not self._at_start:
            self._sequences.restore(self._start)
        self._at_start = False
        tokens, mask, ended = self._read()
        count, size = int(mask.sum()), self._config.batch
        if ended and count < size:
            raise StopIteration
        if count < size:
            raise SaeSweepError(
                f"{count} of the {tokens.size} tokens of a buffer are not special tokens, fewer than "
                f"batch={size}: raise activations.buffer_tokens, or lower batch"
            )
        generator = torch.Generator().manual_seed(_mix(self._seed, self._number))
        order = torch.randperm(count, generator=generator)[: count // size * size].view(-1, size)
        rows, bad_rows = self._run_lm(tokens, mask, count)
        first_bad = {layer: self._first_bad(order, bad_rows[layer]) for layer in rows}
        bad = {layer: found for layer, found in first_bad.items() if found is not None}
        ids = torch.from_numpy(tokens[mask].astype(np.int32))
        device = self._lm.device
        return Buffer(rows, ids.to(device), order.to(device), bad)

    def _read(self) -> tuple[Tokens, np.ndarray, bool]:
        """Read the sequences of the current buffer; returns them, their mask, and whether the text ended."""
        if not self._config.fits_buffer:
            tokens = self._sequences.read(self._buffer_sequences)
            return tokens, self._mask(tokens), len(tokens) < self._buffer_sequences
        tokens, most = self._sequences.read(0), self._buffer_sequences
        while (missing := self._config.buffered - int(self._mask(tokens).sum())) > 0 and len(tokens) < most:
            wanted = min(-(-missing // self._config.packing.seq_len), most - len(tokens))
            more = self._sequences.read(wanted)
            tokens = np.concatenate([tokens, more])
            if len(more) < wanted:
                return tokens, self._mask(tokens), True
        return tokens, self._mask(tokens), False

    def _mask(self, tokens: Tokens) -> np.ndarray:
        return token_mask(tokens, self._lm.tokenizer.special_ids, self._config.packing)

    def _run_lm(
        self, tokens: Tokens, mask: np.ndarray, count: int
    ) -> tuple[dict[int, Tensor], dict[int, dict[int, float]]]:
        """Return the unmasked rows by layer, and by layer the largest absolute value of each bad row."""
        shape = (count, self._lm.d_model)
        rows = {layer: torch.empty(shape, dtype=self.dtype, device=self._lm.device) for layer in self._layers}
        bad: dict[int, dict[int, float]] = {layer: {} for layer in self._layers}
        done, step = 0, self._config.activations.lm_batch
        for first in range(0, len(tokens), step):
            part = torch.from_numpy(tokens[first : first + step]).long()
            kept = torch.from_numpy(mask[first : first + step]).to(self._lm.device)
            for layer, residual in self._lm.residuals(part, self._layers).items():
                raw = residual[kept]
                rounded = rows[layer][done : done + len(raw)].copy_(raw)
                finite = torch.isfinite(rounded).all(dim=1)
                for row in (~finite).nonzero().flatten().tolist():
                    bad[layer][done + row] = raw[row].abs().max().item()
            done += int(mask[first : first + step].sum())
        return rows, bad

    def _first_bad(
        self, order: Int[Tensor, "steps batch"], bad_rows: dict[int, float]
    ) -> tuple[int, str] | None:
        """Return the first batch with a bad row, and the problem with it; None if no batch has one."""
        if not bad_rows:
            return None
        found = torch.isin(order, torch.tensor(sorted(bad_rows))).nonzero().tolist()
        if not found:
            return None
        batch, place = found[0]
        value = bad_rows[int(order[batch, place])]
        kind = dtype_name(self.dtype)
        if math.isfinite(value):
            return batch, f"activation {value:g} overflows {kind}: set activations.dtype=float32 or bfloat16"
        return batch, "NaN or inf in the activations: try model.dtype=float32, or another model"


def _most_sequences(config: RunConfig) -> int:
    """Largest number of sequences in a buffer; it depends on nothing that is not in the stream's identity."""
    body = config.packing.seq_len - 1
    if config.fits_buffer:
        return math.ceil(2 * config.buffered / body)  # the budget, even if half is masked
    batch = math.ceil(2 * config.batch / body)  # a batch, even if half is masked
    return max(config.buffered // config.packing.seq_len, batch)


def activation_dtype(config: RunConfig, lm: LanguageModel) -> torch.dtype:
    """Return the dtype that `activations.dtype` means; auto is the language model's."""
    wanted = config.activations.dtype
    return lm.dtype if wanted == "auto" else lm_dtype(wanted, lm.device)


def _mix(seed: int, number: int) -> int:
    """Combine two numbers into one seed of 63 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
