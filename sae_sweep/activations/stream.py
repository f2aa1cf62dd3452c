"""The stream of activation batches: sequences through the language model, shuffled in a buffer."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.activations.device import dtype_name, lm_dtype
from sae_sweep.activations.model import LanguageModel
from sae_sweep.config import Config, SaeSweepError
from sae_sweep.text.packing import Tokens, token_mask
from sae_sweep.text.sequences import TrainingSequences


class ActivationBatch(NamedTuple):
    """What every SAE of a step learns from."""

    activations: dict[int, Float[Tensor, "batch d_in"]]
    """Raw residuals of each layer, of the same tokens in all: float32, rounded to the activation dtype."""
    step: int
    """From 0."""
    tokens: Int[Tensor, " batch"]
    """The token that each row was read at."""


class BadActivationsError(SaeSweepError):
    """A layer's activations cannot be trained on: NaN or inf, or too large for the activation dtype.

    The stream stays before that step, and its position means the same for other layers: their runs can go on
    with a stream of those layers, restored to it.
    """

    def __init__(self, message: str, layer: int, step: int) -> None:
        super().__init__(message)
        self.layer = layer
        self.step = step


def bad_activations(layer: int, step: int, problem: str) -> BadActivationsError:
    """The error that a stream raises when it comes to a bad batch."""
    return BadActivationsError(f"layer {layer}, step {step}: {problem}", layer=layer, step=step)


class Buffer(NamedTuple):
    """What was computed together and is shuffled together."""

    rows: dict[int, Float[Tensor, "n d_in"]]
    """Of each layer in the activation dtype; n is the number of unmasked tokens."""
    tokens: Int[Tensor, " n"]
    order: Int[Tensor, " n"]
    """The seeded permutation of the rows."""
    bad: dict[int, tuple[int, str]]
    """Of each layer with a bad value: the first batch of this buffer that holds one, and what is wrong."""
    size: int
    """Rows a batch."""

    @property
    def steps(self) -> int:
        """Full batches; the rows left over are dropped."""
        return len(self.order) // self.size

    def chosen(self, first: int, last: int) -> Int[Tensor, " chosen"]:
        """The rows of the batches from `first` up to `last`."""
        return self.order[first * self.size : last * self.size]


class ActivationStream:
    """Endless full batches; the one at step n is a function of the config and n alone.

    Whole sequences are gathered up to about `activations.buffer_tokens`, run through the language model as
    far as the last layer, masked, and shuffled by (shuffle_seed, number of the buffer); what does not fill a
    batch at the end of a buffer is dropped. Neither the layers nor the budget of a run change the order.
    """

    def __init__(
        self, lm: LanguageModel, sequences: TrainingSequences, config: Config, layers: Sequence[int]
    ) -> None:
        lm.check(layers, config.packing.seq_len)
        self._lm = lm
        self._sequences = sequences
        self._config = config
        self._layers = sorted(set(layers))
        self.dtype = activation_dtype(config, lm)
        """What activations are rounded to."""
        self._seed = config.data_seed if config.shuffle_seed is None else config.shuffle_seed
        self._buffer_sequences = max(
            config.activations.buffer_tokens // config.packing.seq_len,
            math.ceil(
                2 * config.batch / (config.packing.seq_len - 1)
            ),  # at least a batch, special tokens aside
        )
        self._step = self._number = self._batch = 0
        self._start = sequences.position()
        self._at_start = True  # the sequences stand where the buffer starts
        self._buffer: Buffer | None = None

    @property
    def epochs(self) -> float:
        """Times the training text has been read, as far as the current buffer."""
        return self._sequences.epochs

    @property
    def buffer_steps(self) -> int:
        """Steps that a buffer holds at most."""
        return max(1, self._buffer_sequences * self._config.packing.seq_len // self._config.batch)

    def position(self) -> dict[str, Any]:
        """Return the step that comes next and where its buffer starts, as plain JSON values."""
        return {"step": self._step, "buffer": self._number, "batch": self._batch, "sequences": self._start}

    def restore(self, position: dict[str, Any]) -> None:
        """Go to a position; the buffer that it lies in is computed again when the next batch is asked for."""
        self._step, self._number, self._batch = position["step"], position["buffer"], position["batch"]
        self._start = position["sequences"]
        self._at_start, self._buffer = False, None

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        """Return the next batch; StopIteration where a text with `exhausted=stop` ends.

        Raises:
            BadActivationsError: if the batch holds NaN, inf, or a value too large for the activation dtype.
            SaeSweepError: if a buffer does not hold a batch, or the text fails.
        """
        buffer = self._buffer or self._fill()
        if self._batch == buffer.steps:
            del buffer  # its memory is needed for the next
            self._go_behind()
            buffer = self._fill()
        self._buffer = buffer
        for layer, (bad, problem) in buffer.bad.items():
            if bad == self._batch:
                raise bad_activations(layer, self._step, problem)
        chosen = buffer.chosen(self._batch, self._batch + 1)
        activations = {layer: rows[chosen].float() for layer, rows in buffer.rows.items()}
        batch = ActivationBatch(activations, self._step, buffer.tokens[chosen])
        self._step += 1
        self._batch += 1
        return batch

    def next_buffer(self) -> Buffer | None:
        """Return the buffer at whose start the stream stands, and go behind it; None where the text ends.

        Raises:
            SaeSweepError: if it does not hold a batch, or the text fails.
        """
        if self._batch:
            raise ValueError(f"the stream stands at batch {self._batch} of a buffer, not at its start")
        try:
            buffer = self._fill()
        except StopIteration:
            return None
        self._step += buffer.steps
        self._go_behind()
        return buffer

    def _go_behind(self) -> None:
        """Stand at the start of the next buffer: the sequences do so already."""
        self._number, self._batch = self._number + 1, 0
        self._start, self._at_start = self._sequences.position(), True
        self._buffer = None

    def _fill(self) -> Buffer:
        if not self._at_start:
            self._sequences.restore(self._start)
        self._at_start = False
        tokens = self._sequences.read(self._buffer_sequences)
        mask = token_mask(tokens, self._sequences.special_ids, self._config.packing)
        count = int(mask.sum())
        if len(tokens) < self._buffer_sequences and count < self._config.batch:
            raise StopIteration
        if count < self._config.batch:
            raise SaeSweepError(
                f"activations.buffer_tokens={self._config.activations.buffer_tokens}: {count} of them are no "
                f"special tokens, fewer than batch={self._config.batch}: raise it"
            )
        generator = torch.Generator().manual_seed(_mix(self._seed, self._number))
        order = torch.randperm(count, generator=generator)
        rows, broken = self._activations(tokens, mask, count)
        bad = {layer: found for layer in rows if (found := self._first_bad(order, broken[layer])) is not None}
        ids = torch.from_numpy(tokens[mask].astype(np.int32))
        device = self._lm.device
        return Buffer(rows, ids.to(device), order.to(device), bad, self._config.batch)

    def _activations(
        self, tokens: Tokens, mask: np.ndarray, count: int
    ) -> tuple[dict[int, Tensor], dict[int, dict[int, float]]]:
        """Run the language model; return each layer's unmasked rows, and the largest value of bad ones."""
        shape = (count, self._lm.d_model)
        rows = {layer: torch.empty(shape, dtype=self.dtype, device=self._lm.device) for layer in self._layers}
        broken: dict[int, dict[int, float]] = {layer: {} for layer in self._layers}
        done, step = 0, self._config.activations.lm_batch
        for first in range(0, len(tokens), step):
            part = torch.from_numpy(tokens[first : first + step]).long()
            kept = torch.from_numpy(mask[first : first + step]).to(self._lm.device)
            for layer, residual in self._lm.residuals(part, self._layers).items():
                raw = residual[kept]
                rounded = rows[layer][done : done + len(raw)].copy_(raw)
                finite = torch.isfinite(rounded).all(dim=1)
                for row in (~finite).nonzero().flatten().tolist():
                    broken[layer][done + row] = raw[row].abs().max().item()
            done += int(mask[first : first + step].sum())
        return rows, broken

    def _first_bad(self, order: Tensor, broken: dict[int, float]) -> tuple[int, str] | None:
        """Return the first batch with a bad row, and what is wrong with it."""
        if not broken:
            return None
        rows = torch.tensor(sorted(broken))
        place = int(torch.isin(order, rows).nonzero()[0])
        value = broken[int(order[place])]
        kind = dtype_name(self.dtype)
        if math.isfinite(value):
            problem = f"activation {value:g} overflows {kind}: set activations.dtype=float32 or bfloat16"
        else:
            problem = "NaN or inf in the activations: try model.dtype=float32, or another model"
        return place // self._config.batch, problem


def activation_dtype(config: Config, lm: LanguageModel) -> torch.dtype:
    """What `activations.dtype` means for a loaded model."""
    wanted = config.activations.dtype
    return lm.dtype if wanted == "auto" else lm_dtype(wanted, lm.device)


def _mix(seed: int, number: int) -> int:
    """One seed of 63 bits from two numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
