"""Cost of a plan: LM passes, SAE training and disk, computed without loading anything.

- LM: 2 x (weights of a block) + 4 x seq_len x d_model FLOPs per token, for every block below the highest
  layer that is read. Embedding is a lookup, and no logits are computed.
- SAE training: 12 x d_in x d_sae FLOPs per token, as in the dense step: encoder and decoder 2 x 2 forward,
  twice that backward. AuxK is not counted: how many features die is not known in advance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae_sweep.config import ModelConfig, RunConfig
from sae_sweep.plan.plan import Plan
from sae_sweep.store import PlannedRun

TERA = 10**12
_BYTES = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}
_TOKEN_ID_BYTES = 4


class SaeShape(NamedTuple):
    """Properties of an SAE that determine the speed of a training step."""

    architecture: str
    numerics: str
    d_in: int
    d_sae: int


@dataclass(frozen=True)
class Throughput:
    """Speed of a machine in TFLOP/s."""

    source: str
    """measured, or given."""
    sae: Mapping[SaeShape, float]
    """Speed of a training step for each SAE shape."""
    lm: Mapping[int, float]
    """Speed of an MLP's matrix products for each d_model."""


@dataclass(frozen=True)
class GroupCost:
    """Cost of runs that share each LM pass; None where the LM's width is unknown until it loads."""

    runs: tuple[PlannedRun, ...]
    lm_tokens: int
    """Approximate number of tokens that the LM reads, special tokens included."""
    lm_tokens_solo: int
    """LM tokens if every run had its own LM pass."""
    sae_tokens: int
    """Sum of the budgets of all runs."""
    lm_flops: int | None
    sae_flops: int | None
    cache_bytes: int | None
    """Size on disk of a cache of these activations and token ids."""

    @property
    def layers(self) -> list[int]:
        """Layers whose residual stream is read, sorted."""
        return sorted({run.config.layer for run in self.runs})


@dataclass(frozen=True)
class PlanCost:
    """Cost of all groups; None where the cost of any group is unknown."""

    groups: tuple[GroupCost, ...]
    lm_tokens: int
    lm_tokens_solo: int
    sae_tokens: int
    lm_flops: int | None
    sae_flops: int | None
    cache_bytes: int | None
    """Size on disk of one cache per activation stream, whatever the launcher."""
    hours: float | None
    """Hours on one machine of this throughput, LM and SAEs in turn."""
    tflops_sae: float | None
    """Mean TFLOP/s over the SAE training of the whole plan."""
    tflops_lm: float | None


def plan_cost(plan: Plan, throughput: Throughput) -> PlanCost:
    """Add up all groups.

    Args:
        plan: the runs, in the groups that its launcher makes.
        throughput: holds every SAE shape and d_model of the plan that is known.
    """
    groups = tuple(group_cost(group) for group in plan.groups())
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
        cache_bytes=_sum(cache_bytes(runs) for runs in streams.values()),
        hours=(sae.seconds + lm.seconds) / 3600 if sae and lm else None,
        tflops_sae=sae.tflops if sae else None,
        tflops_lm=lm.tflops if lm else None,
    )


def group_cost(runs: Sequence[PlannedRun]) -> GroupCost:
    """Cost of runs that share each LM pass, which serves the largest budget and the highest layer."""
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
        cache_bytes=cache_bytes(runs),
    )


def lm_tokens(config: RunConfig) -> int:
    """Tokens that the LM reads for a run: its budget, plus the masked BOS of every sequence.

    Document separators and the unused rest of the last buffer are not counted.
    """
    packing = config.packing
    if not (packing.mask_special and packing.bos_every_sequence):
        return config.tokens
    return round(config.tokens * packing.seq_len / (packing.seq_len - 1))


def lm_flops_per_token(config: RunConfig) -> int | None:
    """FLOPs per token of a forward pass up to `config.layer`; None if the model's width is unknown."""
    if config.model.shape is None:
        return None
    d_model = config.model.shape[1]
    weights = config.model.block_parameters or assumed_block_parameters(config.model)
    return config.layer * (2 * weights + 4 * config.packing.seq_len * d_model)


def assumed_block_parameters(model: ModelConfig) -> int:
    """Weights of a block like GPT-2's, 12 x d_model^2, for a model whose blocks are unknown."""
    return 12 * model.shape[1] ** 2 if model.shape else 0


def sae_flops(config: RunConfig) -> int | None:
    """FLOPs of all training steps of a run; None if d_in is unknown."""
    shape = sae_shape(config)
    return None if shape is None else 12 * shape.d_in * shape.d_sae * config.tokens


def sae_shape(config: RunConfig) -> SaeShape | None:
    """Shape of the run's SAE; None if d_in is unknown until the model loads."""
    if config.model.shape is None:
        return None
    d_in = config.model.shape[1]
    return SaeShape(config.architecture.kind, config.numerics, d_in, config.dictionary * d_in)


def cache_bytes(runs: Sequence[PlannedRun]) -> int | None:
    """Size of a cache: activations of each layer for the largest budget, and four bytes per token id."""
    config = runs[0].config
    if config.model.shape is None:
        return None
    layers = len({run.config.layer for run in runs})
    row = layers * config.model.shape[1] * _BYTES[config.activations.dtype]
    ids = _TOKEN_ID_BYTES * max(lm_tokens(run.config) for run in runs)
    return max(run.config.tokens for run in runs) * row + ids


class _Timed(NamedTuple):
    seconds: float
    tflops: float | None


def _timed(work: Iterable[tuple[int | None, float | None]]) -> _Timed | None:
    """Total seconds and mean rate of (FLOPs, TFLOP/s) pairs done in turn; None if any value is unknown."""
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
