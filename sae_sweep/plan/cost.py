"""What a plan costs: LM passes, SAE training and disk. Arithmetic alone; nothing is loaded.

- LM: 2 x (weights of a block) + 4 x seq_len x d_model FLOPs a token, for every block below the highest layer
  that is read. Embedding is a lookup, and no logits are computed.
- SAE training: 12 x d_in x d_sae FLOPs a token: encoder and decoder 2 x 2 forward, twice that backward, as
  the dense step does. AuxK comes on top and is not counted: how many features die is not known before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae_sweep.config import ModelConfig, RunConfig
from sae_sweep.plan.plan import Plan
from sae_sweep.store import PlannedRun

TERA = 10**12
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TOKEN_ID_BYTES = 4


class SaeShape(NamedTuple):
    """What the speed of a training step depends on."""

    architecture: str
    numerics: str
    d_in: int
    d_sae: int


@dataclass(frozen=True)
class Throughput:
    """How fast a machine is, in 10^12 floating-point operations a second."""

    source: str
    """measured, or given."""
    sae: Mapping[SaeShape, float]
    """SAE training steps of each shape."""
    lm: Mapping[int, float]
    """Products of an MLP's shape, for each d_model."""


@dataclass(frozen=True)
class GroupCost:
    """Of the runs that share each LM pass; None where the width of the LM is not known before it loads."""

    runs: tuple[PlannedRun, ...]
    lm_tokens: int
    """Tokens that the LM reads, special ones included; about."""
    lm_tokens_solo: int
    """The same if every run had a pass of its own."""
    sae_tokens: int
    """Budgets of all runs, added up."""
    lm_flops: int | None
    sae_flops: int | None
    cache_bytes: int | None
    """What a cache of these activations and token ids takes on disk."""

    @property
    def layers(self) -> list[int]:
        """Those whose residual stream is read, in order."""
        return sorted({run.config.layer for run in self.runs})


@dataclass(frozen=True)
class PlanCost:
    """Of all groups; None where that of any group is not known."""

    groups: tuple[GroupCost, ...]
    lm_tokens: int
    lm_tokens_solo: int
    sae_tokens: int
    lm_flops: int | None
    sae_flops: int | None
    cache_bytes: int | None
    """Of one cache for each stream, whatever the launcher."""
    hours: float | None
    """On one machine of that throughput, LM and SAEs one after the other."""
    tflops_sae: float | None
    """10^12 FLOP/s over the SAE training of the whole plan."""
    tflops_lm: float | None


def plan_cost(plan: Plan, throughput: Throughput, auto_dtype: str) -> PlanCost:
    """Add up all groups.

    Args:
        plan: the runs, in the groups that its launcher makes.
        throughput: holds every SAE shape and d_model of the plan that is known.
        auto_dtype: what the LM runs in where `model.dtype` is auto.
    """
    groups = tuple(group_cost(group, auto_dtype) for group in plan.groups())
    sae = _timed((sae_flops(run.config), _sae_rate(run, throughput)) for run in plan.runs)
    lm = _timed((group.lm_flops, _lm_rate(group, throughput)) for group in groups)
    streams: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        streams.setdefault(run.group, []).append(run)
    return PlanCost(
        groups=groups,
        lm_tokens=sum(group.lm_tokens for group in groups),
        lm_tokens_solo=sum(group.lm_tokens_solo for group in groups),
        sae_tokens=sum(group.sae_tokens for group in groups),
        lm_flops=_sum(group.lm_flops for group in groups),
        sae_flops=_sum(group.sae_flops for group in groups),
        cache_bytes=_sum(cache_bytes(runs, auto_dtype) for runs in streams.values()),
        hours=(sae.seconds + lm.seconds) / 3600 if sae and lm else None,
        tflops_sae=sae.tflops if sae else None,
        tflops_lm=lm.tflops if lm else None,
    )


def group_cost(runs: Sequence[PlannedRun], auto_dtype: str) -> GroupCost:
    """Of runs that share each LM pass: it goes as far as the largest budget and the highest layer ask."""
    tokens = max(lm_tokens(run.config) for run in runs)
    deepest = max((run.config for run in runs), key=lambda config: config.layer)
    per_token = lm_flops_per_token(deepest)
    return GroupCost(
        runs=tuple(runs),
        lm_tokens=tokens,
        lm_tokens_solo=sum(lm_tokens(run.config) for run in runs),
        sae_tokens=sum(run.config.tokens for run in runs),
        lm_flops=None if per_token is None else tokens * per_token,
        sae_flops=_sum(sae_flops(run.config) for run in runs),
        cache_bytes=cache_bytes(runs, auto_dtype),
    )


def lm_tokens(config: RunConfig) -> int:
    """Tokens the LM reads for a run: its budget, and the masked BOS of every sequence.

    Document separators and what is left over of the last buffer come on top.
    """
    packing = config.packing
    if not (packing.mask_special and packing.bos_every_sequence):
        return config.tokens
    return round(config.tokens * packing.seq_len / (packing.seq_len - 1))


def lm_flops_per_token(config: RunConfig) -> int | None:
    """Of a forward pass up to `config.layer`; None where the model's width is not known."""
    if config.model.shape is None:
        return None
    d_model = config.model.shape[1]
    weights = config.model.block_parameters or assumed_block_parameters(config.model)
    return config.layer * (2 * weights + 4 * config.packing.seq_len * d_model)


def assumed_block_parameters(model: ModelConfig) -> int:
    """Of a block like GPT-2's, for a model whose blocks are not known: 12 x d_model squared."""
    return 12 * model.shape[1] ** 2 if model.shape else 0


def sae_flops(config: RunConfig) -> int | None:
    """Of all training steps of a run; None where d_in is not known."""
    shape = sae_shape(config)
    return None if shape is None else 12 * shape.d_in * shape.d_sae * config.tokens


def sae_shape(config: RunConfig) -> SaeShape | None:
    """None where d_in is not known before the model loads."""
    if config.model.shape is None:
        return None
    d_in = config.model.shape[1]
    return SaeShape(config.architecture.kind, config.numerics, d_in, config.dictionary * d_in)


def cache_dtype(config: RunConfig, auto_dtype: str) -> str:
    """What activations are rounded to: `activations.dtype`, else that of the LM."""
    chosen = (config.activations.dtype, config.model.dtype)
    return next((dtype for dtype in chosen if dtype != "auto"), auto_dtype)


def cache_bytes(runs: Sequence[PlannedRun], auto_dtype: str) -> int | None:
    """Activations of every distinct layer for the largest budget, and four bytes for each id the LM reads."""
    config = runs[0].config
    if config.model.shape is None:
        return None
    layers = len({run.config.layer for run in runs})
    row = layers * config.model.shape[1] * _BYTES[cache_dtype(config, auto_dtype)]
    ids = _TOKEN_ID_BYTES * max(lm_tokens(run.config) for run in runs)
    return max(run.config.tokens for run in runs) * row + ids


class _Timed(NamedTuple):
    seconds: float
    tflops: float | None


def _timed(work: Iterable[tuple[int | None, float | None]]) -> _Timed | None:
    """Seconds for (FLOPs, TFLOP/s) one after the other, and the rate over all; None if any is not known."""
    total, seconds, rates = 0, 0.0, set()
    for flops, rate in work:
        if flops is None or rate is None:
            return None
        total += flops
        seconds += flops / (rate * TERA)
        rates.add(rate)
    if len(rates) > 1 and seconds:
        return _Timed(seconds, total / seconds / TERA)
    return _Timed(seconds, max(rates, default=None))


def _sae_rate(run: PlannedRun, throughput: Throughput) -> float | None:
    shape = sae_shape(run.config)
    return throughput.sae[shape] if shape else None


def _lm_rate(group: GroupCost, throughput: Throughput) -> float | None:
    shape = group.runs[0].config.model.shape
    return throughput.lm[shape[1]] if shape else None


def _sum(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
