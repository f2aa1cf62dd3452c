"""Estimates the memory that SAEs need together: what they hold, and the most that they need for a while.

A step, a pass of the LM, an evaluation and a checkpoint follow each other, and members take turns, so only
the largest of these counts. The factors are peaks of resident memory, measured on a CPU with gpt2-pico: bytes
beyond what was held before, over the size of the array that they are a multiple of.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_sweep.activations import LMSizes
from sae_sweep.activations.model import LOGITS_AT_ONCE
from sae_sweep.analysis.losses import BATCH_TOKENS
from sae_sweep.analysis.matching import CHUNK_ELEMENTS
from sae_sweep.config import KEPT_RESIDUALS_BYTES, RunConfig

_FLOAT = 4
_COPIES = 4
"""Copies of every parameter: itself, its gradient, and Adam's two moments."""
_DENSE = 8
"""Arrays of batch x d_sae in a step: 4.4 to 6.5 with the formulas in torch."""
_SPARSE = 0.3
"""The same at least: with kernels, and a few non-zeros per row."""
_LATENTS = 5
"""Arrays of positions x d_sae in the evaluation: 4.3 to 4.7."""
_LOGITS = 8
"""Bytes per logit beside the logit itself: in float32, and its logarithm."""
_WIDTHS, _MLP_WIDTHS = 8, 2
"""Arrays of tokens x d_model, and of tokens x d_mlp, in a pass of the LM: 9 to 16 d_model together."""
_SCORES = 12
"""Arrays of attention scores, in a pass with eager attention."""
_CHECKPOINT = 9
"""Copies of every parameter while a checkpoint is written: three of parameters and moments."""
_OWN_START = 4
"""Copies of W_dec while it is matched with its own start, beside two chunks of cosines."""

REMEDIES = {
    "the SAE and its optimiser": "lower dictionary",
    "the buffer of activations": "lower activations.buffer_tokens",
    "pinned memory for the cache": "lower activations.buffer_tokens, or take activations=stream",
    "held-out residuals": "lower evaluation.tokens",
    "a training step": "lower batch or dictionary",
    "a pass of the language model": "lower activations.lm_batch",
    "the evaluation": "lower dictionary, or take a smaller model",
    "a checkpoint": "lower dictionary",
}
"""What needs memory, and how to lessen it."""

Terms = Mapping[str, int]
"""Bytes by what needs them, with the keys of `REMEDIES`."""


class Needs(NamedTuple):
    """What a group needs of one memory."""

    held: Terms
    """All of it is held throughout training."""
    phases: Terms
    """Only the largest is needed at a time."""

    @property
    def bytes(self) -> int:
        return sum(self.held.values()) + max(self.phases.values(), default=0)

    @property
    def largest(self) -> tuple[str, int]:
        """The largest term."""
        return max({**self.held, **self.phases}.items(), key=lambda term: term[1])


def needs(configs: Sequence[RunConfig], lm: LMSizes, *, on_cpu: bool, least: bool = False) -> list[Needs]:
    """Estimate what the configs of a group need together, beside the LM's weights.

    Args:
        configs: configs of one group.
        lm: sizes of the LM that they read.
        on_cpu: whether the SAEs are in the memory of the machine.
        least: count the smallest possible step instead of the largest.

    Returns:
        What they need of the device and, unless that is the CPU, of the machine.
    """
    dense = _SPARSE if least else _DENSE
    held = {
        "the SAE and its optimiser": sum(member_bytes(config, lm.d_model) for config in configs),
        "the buffer of activations": _buffer_bytes(configs, lm),
        "held-out residuals": max(_residual_bytes(config, lm) for config in configs),
    }
    phases = {
        "a training step": max(
            round(dense * _FLOAT * _latents(config, lm, config.batch)) for config in configs
        ),
        "a pass of the language model": _lm_pass_bytes(configs, lm),
        "the evaluation": max(_evaluation_bytes(config, lm) for config in configs),
    }
    checkpoint = {
        "a checkpoint": max(member_bytes(config, lm.d_model) for config in configs) * _CHECKPOINT // _COPIES
    }
    if on_cpu:
        return [Needs(held, phases | checkpoint)]
    return [
        Needs(held, phases),
        Needs({"pinned memory for the cache": _pinned_bytes(configs, lm)}, checkpoint),
    ]


def member_bytes(config: RunConfig, d_in: int) -> int:
    """Memory that one SAE holds throughout training: parameters, gradients, moments."""
    return _COPIES * _FLOAT * config.parameters(d_in)


def _latents(config: RunConfig, lm: LMSizes, rows: int) -> int:
    return rows * config.dictionary * lm.d_model


def _itemsize(config: RunConfig, lm: LMSizes) -> int:
    """Bytes of an activation."""
    wanted = config.activations.dtype
    return lm.itemsize if wanted == "auto" else _FLOAT if wanted == "float32" else 2


def _layers(configs: Sequence[RunConfig]) -> int:
    return len({config.layer for config in configs})


def _buffer_bytes(configs: Sequence[RunConfig], lm: LMSizes) -> int:
    """The buffer of every layer, and two batches: the one in use, and the one that was fetched ahead.

    From the cache there is no buffer on the device; on a CPU its files are mapped, and their pages can go.
    """
    shared = configs[0]
    streamed = shared.activations.source == "stream"
    buffered = shared.buffered * _itemsize(shared, lm) if streamed else 0
    return _layers(configs) * lm.d_model * (buffered + 2 * shared.batch * _FLOAT)


def _pinned_bytes(configs: Sequence[RunConfig], lm: LMSizes) -> int:
    """Host memory that a GPU copies from: the shard in use and the next one, with their token ids."""
    shared = configs[0]
    if shared.activations.source == "stream":
        return 0
    row = _layers(configs) * lm.d_model * _itemsize(shared, lm) + _FLOAT
    return 2 * shared.buffered * row


def _residual_bytes(config: RunConfig, lm: LMSizes) -> int:
    """Residuals of the held-out text, which the evaluation keeps of one layer if they are few."""
    size = config.evaluation.tokens * lm.d_model * lm.itemsize
    return size if config.layer and size <= KEPT_RESIDUALS_BYTES else 0


def _lm_pass_bytes(configs: Sequence[RunConfig], lm: LMSizes) -> int:
    """A pass over `activations.lm_batch` sequences, which captures every layer of the group."""
    shared = configs[0]
    tokens = shared.activations.lm_batch * shared.packing.seq_len
    captured = (_layers(configs) + 1) * lm.d_model * lm.itemsize
    return tokens * (_token_bytes(shared, lm) + captured)


def _token_bytes(config: RunConfig, lm: LMSizes) -> int:
    """Activations of the LM per token of a pass; eager attention keeps the scores of every pair of tokens."""
    scores = 0 if lm.attention == "sdpa" else _SCORES * lm.heads * config.packing.seq_len
    return lm.itemsize * (_WIDTHS * lm.d_model + _MLP_WIDTHS * lm.d_mlp + scores)


def _evaluation_bytes(config: RunConfig, lm: LMSizes) -> int:
    """A pass of the LM over a batch of held-out text, in which first latents exist, then logits.

    Or the matching with the SAE's own start, which follows.
    """
    length = config.packing.seq_len
    held_out = -(-config.evaluation.tokens // length)
    positions = min(max(1, BATCH_TOKENS // length), held_out) * length
    latents = _LATENTS * _FLOAT * _latents(config, lm, positions)
    parts = min(positions, max(1, LOGITS_AT_ONCE // (length * lm.vocabulary)) * length)
    logits = parts * lm.vocabulary * (lm.itemsize + _LOGITS)
    d_sae = config.dictionary * lm.d_model
    start = _FLOAT * (_OWN_START * lm.d_model * d_sae + 2 * min(CHUNK_ELEMENTS, d_sae**2))
    return max(positions * _token_bytes(config, lm) + max(latents, logits), start)
